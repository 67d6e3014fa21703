package report

import (
	"fmt"
	"slices"

	"github.com/nativebench/nativebench/internal/measure"
	"github.com/nativebench/nativebench/internal/results"
)

// holding is what a backend held on a GPU, from the cell in which that was most.
type holding struct {
	model, backend string
	use            results.GPUUse
	ledger         *measure.VRAM // nil: it does not tell its parts
	pool           measure.Pool  // of all GPUs it uses
	cell           string
}

// holdings are what the backends held on the GPUs of a run, device by device, in
// the order of models and backends. What a backend left alone is not there.
func (v *runView) holdings() (all []holding) {
	for _, model := range v.models() {
		for _, b := range v.backends {
			most := map[string]*holding{}
			pool := measure.Pool{Reserved: -1, InUse: -1}
			var devices []string
			for _, c := range v.cells {
				if c.Model != model || c.Backend != b || c.Event == nil {
					continue
				}
				if s := c.Event.Server; s != nil {
					p := measure.PoolOf(s.KVPoolTokens, s.KVTokenBytes, s.KVCacheUsedMax, s.KVHeldMax)
					pool.Reserved, pool.InUse = max(pool.Reserved, p.Reserved), max(pool.InUse, p.InUse)
				}
				for _, u := range c.Event.GPU {
					if unused(&u) || most[u.Device] != nil && most[u.Device].use.OwnPeak >= u.OwnPeak {
						continue
					}
					if most[u.Device] == nil {
						devices = append(devices, u.Device)
					}
					h := &holding{model: model, backend: b, use: u, cell: c.ID}
					if l, ok := measure.VRAMOf(c.Event.Memory, u.Engine, u.OwnContext, u.OwnLoaded, u.OwnPeak); ok {
						h.ledger = &l
					}
					most[u.Device] = h
				}
			}
			for _, d := range devices {
				h := most[d]
				h.pool = pool
				h.serverHeld(v)
				all = append(all, *h)
			}
		}
	}
	return all
}

// serverHeld takes what was in use after the end of a server from the manifest:
// it ends after its cells.
func (h *holding) serverHeld(v *runView) {
	for _, b := range v.Manifest.Backends {
		if b.Backend != h.backend || b.Model != h.model && len(v.models()) > 1 {
			continue
		}
		for _, g := range b.GPU {
			if g.Device == h.use.Device && g.Released >= 0 {
				h.use.Released = max(h.use.Released, g.Released)
			}
		}
	}
}

// vramRow is a line of the ledger.
type vramRow struct {
	name string
	tone tone
	of   func(h *holding, n *notebook) (field, bool)
}

// bytesRow is a line of one number, which is not known below 0.
func bytesRow(name string, t tone, of func(*holding) int64) vramRow {
	return vramRow{name, t, func(h *holding, _ *notebook) (field, bool) {
		v := of(h)
		f := sizeField(float64(v), v >= 0)
		if v >= 0 {
			f.tone = t
		}
		return f, v >= 0
	}}
}

func partRow(name, key string) vramRow {
	return vramRow{name, plain, func(h *holding, _ *notebook) (field, bool) {
		if h.ledger != nil {
			for _, p := range h.ledger.Parts {
				if p.Key == key {
					return sizeField(float64(p.Bytes), true), true
				}
			}
		}
		return sizeField(0, false), false
	}}
}

// vramParts are the engines' parts as people read them; others go by the engine's
// own word.
func vramParts() []vramName {
	return []vramName{{"context", "CUDA context, measured"}, {"weights", "weights"}, {"kv", "KV cache"}, {"compute", "compute buffers"}, {"graphs", "CUDA graphs"}}
}

// vramName is a part's key and its name in tables.
type vramName struct{ Key, Name string }

// vramRows are the lines that the holdings need.
func vramRows(held []*holding) []vramRow {
	rows := []vramRow{bytesRow("device, before it was started", faint, func(h *holding) int64 { return h.use.Before })}
	names := vramParts()
	for _, h := range held {
		if h.ledger == nil {
			continue
		}
		for _, p := range h.ledger.Parts {
			if !slices.ContainsFunc(names, func(n vramName) bool { return n.Key == p.Key }) {
				names = append(names, vramName{p.Key, p.Key})
			}
		}
	}
	for _, n := range names {
		rows = append(rows, partRow(n.Name, n.Key))
	}
	return append(rows,
		vramRow{"libraries and graphs, measured", plain, func(h *holding, _ *notebook) (field, bool) {
			if h.ledger == nil {
				return sizeField(0, false), false
			}
			return sizeField(float64(h.ledger.Grown), true), true
		}},
		vramRow{"in no account", plain, func(h *holding, n *notebook) (field, bool) {
			if h.ledger == nil {
				return sizeField(0, false), false
			}
			f := sizeField(float64(h.ledger.Remainder), true)
			f.aside += fmt.Sprintf(" %+.1f%%", 100*h.ledger.Share())
			if h.use.OwnContext < 0 && !slices.ContainsFunc(h.ledger.Parts, func(p measure.VRAMPart) bool { return p.Key == "context" }) {
				f.aside += " " + n.ref(fmt.Sprintf("%s: what it held before its weights came was not read: the CUDA context is in what is in no account", h.backend))
			}
			return f, true
		}},
		vramRow{"backend, at peak", strong, func(h *holding, n *notebook) (field, bool) {
			f := sizeField(float64(h.use.OwnPeak), h.use.OwnPeak >= 0)
			if h.use.OwnPeak >= 0 {
				f.tone = strong
			}
			if h.use.SourceWhy != "" {
				f.aside = fmt.Sprintf("%s %s", f.aside, n.ref(fmt.Sprintf("%s: not by process but the rise of the device above what was in use before it was started: %s", h.backend, h.use.SourceWhy)))
			}
			return f, h.use.OwnPeak >= 0
		}},
		bytesRow("KV cache, reserved", plain, (*holding).reserved),
		vramRow{"KV cache, in use at most", plain, func(h *holding, _ *notebook) (field, bool) {
			f := sizeField(float64(h.pool.InUse), h.pool.InUse >= 0)
			if h.pool.InUse >= 0 && h.reserved() > 0 {
				f.aside += fmt.Sprintf(" %.1f%%", 100*float64(h.pool.InUse)/float64(h.reserved()))
			}
			return f, h.pool.InUse >= 0
		}},
		bytesRow("device, loaded", faint, func(h *holding) int64 { return h.use.Loaded }),
		bytesRow("device, at peak", faint, func(h *holding) int64 { return h.use.Peak }),
		bytesRow("device, after its end", faint, func(h *holding) int64 { return h.use.Released }),
		vramRow{"other processes, at most", alarm, func(h *holding, _ *notebook) (field, bool) {
			f := sizeField(float64(h.use.Foreign), h.use.Foreign >= 0)
			return f, h.use.Foreign > 0
		}},
	)
}

// reserved is what a server keeps for its KV cache.
func (h *holding) reserved() int64 { return h.pool.Reserved }

// vramSide is how many backends stand beside each other.
const vramSide = 4

// vram says where the GPU memory goes, device by device.
func (v *runView) vram() []section {
	held := v.holdings()
	if len(held) == 0 {
		return nil
	}
	n := &notebook{}
	s := section{
		title: "Where the GPU memory goes", rank: 1,
		lead: []string{
			"Of each backend the cell in which it held most. Weights, KV cache and compute buffers as the engine counts them. Measured are differences of the driver's figures: the CUDA context, while its process stood still before its weights came; and libraries that load late, their workspaces and CUDA graphs, from where it stood still again, loaded, to its peak. They and what is in no account (at the end of the load) add up to what the backend held at its peak by the driver's (NVML's) books. Servers do not tell their parts: of those that keep a pool of KV cache, what is reserved and how much of it was in use at most, over all their GPUs. Device: all processes.",
		},
	}
	if v.label != "" {
		s.title = v.label + " · " + s.title
	}
	type key struct{ model, device string }
	var keys []key
	by := map[key][]*holding{}
	for i := range held {
		k := key{held[i].model, held[i].use.Device}
		if by[k] == nil {
			keys = append(keys, k)
		}
		by[k] = append(by[k], &held[i])
	}
	for _, k := range keys {
		for side := range slices.Chunk(by[k], vramSide) {
			head := k.device
			if len(v.models()) > 1 {
				head = k.model + " · " + head
			}
			g := grid{columns: []column{{head: head}}}
			for _, h := range side {
				g.columns = append(g.columns, column{head: h.backend})
			}
			for _, line := range vramRows(side) {
				r := row{cells: []field{{main: line.name, tone: line.tone}}}
				some := false
				for _, h := range side {
					f, known := line.of(h, n)
					some = some || known
					r.cells = append(r.cells, f)
				}
				if some {
					g.rows = append(g.rows, r)
				}
			}
			s.grids = append(s.grids, g)
		}
	}
	s.notes = n.texts
	return []section{s}
}

// jsonVRAM is what a backend held on a GPU, in bytes; null: not known.
type jsonVRAM struct {
	Model          string           `json:"model"`
	Backend        string           `json:"backend"`
	Device         string           `json:"device"`
	Cell           string           `json:"cell"` // in which it held most
	Parts          map[string]int64 `json:"parts,omitempty"`
	Grown          *int64           `json:"since_first_request,omitempty"`
	Remainder      *int64           `json:"remainder,omitempty"`
	RemainderShare *float64         `json:"remainder_of_peak,omitempty"`
	OwnPeak        *int64           `json:"own_peak"`
	Source         string           `json:"own_source"`
	SourceWhy      string           `json:"own_source_why,omitempty"`
	KVReserved     *int64           `json:"kv_reserved,omitempty"`
	KVInUse        *int64           `json:"kv_in_use_max,omitempty"`
	Before         *int64           `json:"device_before"`
	Loaded         *int64           `json:"device_loaded"`
	Peak           *int64           `json:"device_peak"`
	Released       *int64           `json:"device_released"`
	Foreign        *int64           `json:"other_processes_peak"`
}

func (v *runView) vramJSON() (all []jsonVRAM) {
	for _, h := range v.holdings() {
		u := h.use
		j := jsonVRAM{
			Model: h.model, Backend: h.backend, Device: u.Device, Cell: h.cell, OwnPeak: knownBytes(u.OwnPeak), Source: u.Source, SourceWhy: u.SourceWhy,
			KVReserved: knownBytes(h.pool.Reserved), KVInUse: knownBytes(h.pool.InUse), Before: knownBytes(u.Before), Loaded: knownBytes(u.Loaded),
			Peak: knownBytes(u.Peak), Released: knownBytes(u.Released), Foreign: knownBytes(u.Foreign),
		}
		if l := h.ledger; l != nil {
			j.Parts = map[string]int64{}
			for _, p := range l.Parts {
				j.Parts[p.Key] = p.Bytes
			}
			share := l.Share()
			j.Grown, j.Remainder, j.RemainderShare = &l.Grown, &l.Remainder, &share
		}
		all = append(all, j)
	}
	return all
}

func knownBytes(v int64) *int64 {
	if v < 0 {
		return nil
	}
	return &v
}
