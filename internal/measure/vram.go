package measure

import "github.com/nativebench/nativebench/internal/bench"

// VRAM splits the memory that an engine held on a GPU at its peak into parts that
// add up to it, in bytes.
type VRAM struct {
	Parts []VRAMPart
	// Grown is what came from the end of the load, before the first request, to the
	// peak, by the driver: graphs, libraries that are loaded late with their
	// workspaces, pools.
	Grown int64
	// Remainder is what no part explains of what was held at the end of the load;
	// below 0 where the parts are more than was held.
	Remainder int64
	Peak      int64 // all of it, as the driver says
}

// VRAMPart is a part that the engine, or for its context the driver, accounts
// for.
type VRAMPart struct {
	Key   string // context, weights, kv, compute, or what else the engine names
	Bytes int64
}

// Share is the remainder's part of the whole, -1 to 1.
func (v VRAM) Share() float64 {
	if v.Peak == 0 {
		return 0
	}
	return float64(v.Remainder) / float64(v.Peak)
}

// VRAMOf makes the ledger of one device. parts are the engine's account of all
// devices; context is what was held before the weights came (-1: not read, it is
// then in the remainder), loaded what was held at the end of the load, peak the
// most. It is not ok when the engine has nothing on the device, or the driver's
// figures are not known (-1).
func VRAMOf(parts []bench.MemoryPart, device string, context, loaded, peak int64) (v VRAM, ok bool) {
	if loaded < 0 || peak < 0 {
		return v, false
	}
	at := map[string]int{}
	for _, p := range parts {
		if p.Device != device {
			continue
		}
		i, known := at[p.Part]
		if !known {
			i = len(v.Parts)
			at[p.Part], v.Parts = i, append(v.Parts, VRAMPart{Key: p.Part})
		}
		v.Parts[i].Bytes += p.Bytes
	}
	if len(v.Parts) == 0 {
		return v, false
	}
	if _, told := at["context"]; !told && context >= 0 {
		v.Parts = append([]VRAMPart{{"context", context}}, v.Parts...)
	}
	v.Peak, v.Grown, v.Remainder = peak, peak-loaded, loaded
	for _, p := range v.Parts {
		v.Remainder -= p.Bytes
	}
	return v, true
}

// Pool is a server's KV cache in bytes: what it keeps for it, and the most of it
// that was in use. -1: not known.
type Pool struct{ Reserved, InUse int64 }

// PoolOf makes bytes of what a server says of its KV cache: tokens is how many it
// has room for, tokenBytes what one takes, used the share in use (below 0: not
// told) and held the tokens set aside for requests. 0: not known.
func PoolOf(tokens float64, tokenBytes int64, used, held float64) Pool {
	p := Pool{-1, -1}
	if tokenBytes <= 0 {
		return p
	}
	if tokens > 0 {
		p.Reserved = int64(tokens * float64(tokenBytes))
	}
	switch {
	case used >= 0 && tokens > 0:
		p.InUse = int64(used * tokens * float64(tokenBytes))
	case held > 0:
		p.InUse = int64(held * float64(tokenBytes))
	}
	return p
}
