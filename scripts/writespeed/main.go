//go:build linux

// Writespeed holds the writing of synthetic weights against a plain write of as
// many bytes to the same disk, as `dd conv=fsync` does it, in turns, and tells how much
// memory it took at most.
//
//	go run ./scripts/writespeed [-model llama-2-7b-chat] [-layers 4] [-pairs 3] [-both] [-dir DIR]
//
// Each pair is `nativebench models synth` in a process of its own, checksums and
// all, and the plain write, in alternating order; a pair's ratio is the plain
// time over ours: 1 is the disk's speed. One write of ours goes before the
// pairs and is not counted: the first to use memory that a virtual machine has
// given back pays for getting it again. -layers 0 is the whole model.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

func main() {
	model := flag.String("model", "llama-2-7b-chat", "whose shape")
	layers := flag.Int("layers", 4, "of it; 0: all")
	pairs := flag.Int("pairs", 3, "of writes")
	both := flag.Bool("both", false, "write the Hugging Face directory, too, at the same time")
	dir := flag.String("dir", "", "`DIR` on the disk to write to; default: the cache of nativebench")
	program := flag.String("program", "bin/nativebench", "nativebench")
	flag.Parse()
	if err := run(*program, *model, *layers, *pairs, *both, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "writespeed:", err)
		os.Exit(1)
	}
}

// wrote is one write.
type wrote struct {
	bytes  int64
	took   time.Duration
	memory int64 // largest resident set, bytes
	busy   time.Duration
}

func (w wrote) rate() float64 { return float64(w.bytes) / w.took.Seconds() / 1e6 }

func run(program, model string, layers, pairs int, both bool, dir string) error {
	if pairs < 1 {
		return errors.New("-pairs must be at least 1")
	}
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		dir = filepath.Join(cache, "nativebench")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(dir, "writespeed-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	out := filepath.Join(temp, "model")
	args := []string{"models", "synth", model, "-o", out}
	if layers > 0 {
		args = append(args, "--layers", strconv.Itoa(layers))
	}
	what := "GGUF and Hugging Face directory"
	if !both {
		what = "GGUF"
		args = append(args, "--gguf-only")
	}
	var ratios []float64
	most := int64(0)
	var size int64
	for i := -1; i < pairs; i++ {
		var ours, plain wrote
		write := func() error {
			if ours, err = synth(program, out, args); err == nil {
				size = ours.bytes
			}
			return errors.Join(err, os.RemoveAll(out))
		}
		other := func() error {
			plain, err = plainly(filepath.Join(temp, "plain"), size)
			return errors.Join(err, os.Remove(filepath.Join(temp, "plain")))
		}
		order := []func() error{write, other}
		switch {
		case i < 0:
			order = order[:1]
		case i%2 == 1:
			slices.Reverse(order)
		}
		for _, do := range order {
			syscall.Sync() // nobody pays for what another left
			if err := do(); err != nil {
				return err
			}
		}
		if i < 0 {
			fmt.Printf("%s, %d layers (0: all), %s: %.2f GB\n", model, layers, what, float64(size)/1e9)
			continue
		}
		ratio := plain.took.Seconds() / ours.took.Seconds()
		ratios, most = append(ratios, ratio), max(most, ours.memory)
		fmt.Printf("pair %d: synth %.1f s, %.0f MB/s, %.1f s of CPU, %.0f MiB resident at most / plain write %.1f s, %.0f MB/s, %.1f s of CPU: ratio %.2f\n",
			i+1, ours.took.Seconds(), ours.rate(), ours.busy.Seconds(), float64(ours.memory)/(1<<20), plain.took.Seconds(), plain.rate(), plain.busy.Seconds(), ratio)
	}
	slices.Sort(ratios)
	median := (ratios[(len(ratios)-1)/2] + ratios[len(ratios)/2]) / 2
	fmt.Printf("speed of a plain write: %.2f [%.2f, %.2f] of %d pairs; memory at most %.0f MiB\n", median, ratios[0], ratios[len(ratios)-1], pairs, float64(most)/(1<<20))
	return nil
}

// synth runs nativebench.
func synth(program, out string, args []string) (w wrote, err error) {
	cmd := exec.Command(program, args...)
	cmd.Stderr = os.Stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return w, fmt.Errorf("%s: %w", program, err)
	}
	w.took, w.busy = time.Since(began), cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()
	w.memory = cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10 // KiB (getrusage(2))
	err = filepath.WalkDir(out, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			w.bytes += info.Size()
		}
		return err
	})
	return w, err
}

// plainly writes so many bytes, which no disk can make smaller, and waits until
// the disk has them.
func plainly(path string, bytes int64) (w wrote, err error) {
	block := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{1})
	if _, err := random.Read(block); err != nil {
		return w, err
	}
	began, busy := time.Now(), ownCPU()
	f, err := os.Create(path)
	if err != nil {
		return w, err
	}
	for left := bytes; left > 0 && err == nil; left -= int64(len(block)) {
		_, err = f.Write(block[:min(left, int64(len(block)))])
	}
	err = cmp.Or(err, f.Sync())
	err = errors.Join(err, f.Close())
	return wrote{bytes: bytes, took: time.Since(began), busy: ownCPU() - busy}, err
}

// ownCPU is the CPU time of this process so far.
func ownCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // which cannot fail for oneself
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
