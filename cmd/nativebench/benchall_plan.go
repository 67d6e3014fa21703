package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/hub"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/report"
)

func tableRow(cells ...any) table.Row { return cells }

// wholePlanner makes runs of what was asked for and can be had.
type wholePlanner struct {
	c       *cli.Context
	known   registry
	base    *setup // as the flags have it, all models
	hub     bool   // weights are those of the hub's cache
	paths   map[string]string
	lengths []int // of the sweep; nil with limit: to each model's limit
	limit   bool
	free    int64            // bytes on the disk of the cache, less what runs before will write; below 0: not known
	planned map[string]int64 // bytes of weights that the runs so far write, by model
	out     *wholeBench
}

// diskMargin is left free on the disk of the weights, bytes.
const diskMargin = 1 << 30

func planWhole(c *cli.Context, known registry, options map[string]string) (*wholeBench, error) {
	w := &wholePlanner{c: c, known: known, base: newSetup(c, known, wholePlan()), planned: map[string]int64{}}
	w.base.weights, w.base.weightsFlag, w.base.weightsGiven = synthetic, "--weights", false // it is said of each run
	w.out = &wholeBench{Schema: allSchema, Created: time.Now().UTC(), Command: argv(c), Options: options}
	if !c.IsSet("backends") {
		w.base.plan.Backends = nil
		for _, b := range known {
			if b.server == nil && b.name == "native" || b.server != nil && (b.server.Program != "" || b.server.Image != "" || w.base.plan.Endpoints[b.name] != "") {
				w.base.plan.Backends = append(w.base.plan.Backends, b.name)
			}
		}
	}
	if err := w.checkOptions(); err != nil {
		return nil, err
	}
	w.base.look()
	w.free = freeDisk()
	backends := w.backends()
	for _, key := range w.base.plan.Models {
		if len(backends) > 0 {
			w.model(key, backends)
		}
	}
	if len(w.out.Runs) == 0 {
		var why []string
		for _, o := range w.out.Omitted {
			why = append(why, o.What+": "+o.Why)
		}
		return nil, refuse("nothing of this can be measured here: %s", strings.Join(why, "; "))
	}
	return w.out, nil
}

func (w *wholePlanner) omit(what, format string, args ...any) {
	w.out.Omitted = append(w.out.Omitted, report.Omission{What: what, Why: fmt.Sprintf(format, args...)})
}

// checkOptions refuses what is wrong whatever is installed here.
func (w *wholePlanner) checkOptions() error {
	s := w.base
	if err := s.plan.Validate(w.known.names()...); err != nil {
		return usageError{err}
	}
	if s.wait <= 0 {
		return refuse("--ready-timeout %s: give a time over 0", s.wait)
	}
	if len(s.plan.Endpoints) > 0 && len(s.plan.Models) > 1 {
		return refuse("--endpoint: a server has one model, but %d are asked for (%s): name one --models", len(s.plan.Models), strings.Join(s.plan.Models, ", "))
	}
	flagsOnly := *s
	flagsOnly.plan.Backends = nil
	if err := flagsOnly.checkServers(); err != nil {
		return err
	}
	switch text := w.c.String("context-sweep"); text {
	case "limit":
		w.limit = true
	case "none":
	default:
		for _, word := range strings.Split(text, ",") {
			n, err := strconv.Atoi(strings.TrimSpace(word))
			if err != nil || n < 1 || slices.Contains(w.lengths, n) {
				return refuse("--context-sweep %s: give different numbers of tokens, for example 512,1024,2048; or limit, or none", text)
			}
			w.lengths = append(w.lengths, n)
		}
	}
	return w.checkPaths()
}

// checkPaths reads --weights.
func (w *wholePlanner) checkPaths() error {
	list := w.c.StringSlice("weights")
	if len(list) == 1 && (list[0] == synthetic || list[0] == "hub") {
		w.hub = list[0] == "hub"
		return nil
	}
	w.paths = map[string]string{}
	for _, pair := range list {
		key, path, found := strings.Cut(pair, "=")
		if !found || path == "" {
			return refuse("--weights %s: write %s, hub, or MODEL=PATH", pair, synthetic)
		}
		if _, err := plan.ModelByKey(key); err != nil {
			return refuse("--weights %s: %w", pair, err)
		}
		if _, err := os.Stat(path); err != nil {
			return refuse("--weights %s: %w", pair, err)
		}
		w.paths[key] = absolute(path)
	}
	return nil
}

// backends are those of the plan that work here.
func (w *wholePlanner) backends() (list []string) {
	for _, name := range w.base.plan.Backends {
		b, err := w.known.find(name)
		if err != nil {
			continue // Validate knows them all
		}
		one := *w.base
		one.plan.Backends, one.plan.Models = []string{name}, w.base.plan.Models[:1]
		err = one.checkServers()
		switch {
		case err != nil:
		case one.plan.Endpoints[name] != "":
		case one.contained(b):
			err = dockerAnswers(name)
		default:
			err = b.check(one.engineDir)
		}
		if err != nil {
			w.omit(name, "%s", oneLine(err))
			continue
		}
		list = append(list, name)
	}
	return list
}

// model adds the runs of a model.
func (w *wholePlanner) model(key string, backends []string) {
	m, err := plan.ModelByKey(key)
	if err != nil {
		return // Validate knows them all
	}
	s := *w.base
	s.plan.Models, s.plan.Backends = []string{key}, slices.Clone(backends)
	weights := []string{"--weights", synthetic}
	switch {
	case w.hub:
		found, err := hub.Find(m.HubID, "")
		if err != nil {
			w.omit(key, "no weights: %s; nativebench models pull %s", oneLine(err), key)
			return
		}
		s.weights, s.hfDir, weights = fromHub, found.Dir, []string{"--hf-dir", found.Dir}
	case w.paths != nil && w.paths[key] == "":
		w.omit(key, "no weights: --weights names none for it")
		return
	case w.paths != nil:
		if st, err := os.Stat(w.paths[key]); err == nil && st.IsDir() {
			s.weights, s.hfDir, weights = fromHub, w.paths[key], []string{"--hf-dir", w.paths[key]}
			break
		}
		s.weights, weights = w.paths[key], []string{"--gguf", w.paths[key]}
		for _, b := range s.wantDirectory() {
			w.omit(key+" on "+b.name, "it loads a Hugging Face directory, and --weights names a GGUF file")
			s.plan.Backends = without(s.plan.Backends, b.name)
		}
	}
	if len(s.plan.Backends) == 0 {
		return
	}
	if err := s.checkWeights(); err != nil {
		w.omit(key, "%s", oneLine(err))
		return
	}
	mod, err := s.foreseen(key)
	if err != nil {
		w.omit(key, "%s", oneLine(err))
		return
	}
	tasks := s
	w.add(key+"-tasks", &tasks, mod, weights)
	if w.limit || len(w.lengths) > 0 {
		sweep := s
		sweep.plan.Concurrency = []int{1}
		sweep.plan.PromptTokens = w.lengthsFor(sweep.plan, m)
		w.add(key+"-context", &sweep, mod, weights)
	}
}

func without(list []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == name })
}

// shortestSweep is the first length of a sweep to a model's limit.
const shortestSweep = 128

// lengthsFor are the prompt lengths of a sweep that are a model's own.
func (w *wholePlanner) lengthsFor(p plan.Plan, m plan.Model) []int {
	if !w.limit {
		return w.lengths
	}
	p.Models, p.PromptTokens = []string{m.Key}, []int{1 << 30} // capped to the longest
	cells, err := p.Cells()
	if err != nil || len(cells) == 0 {
		return []int{shortestSweep} // Validate has its say then
	}
	var list []int
	for n := shortestSweep; n < cells[0].Prompt; n *= 2 {
		list = append(list, n)
	}
	return append(list, cells[0].Prompt)
}

// disk is how many bytes of weights a run will write, besides what runs before
// it will.
func (w *wholePlanner) disk(s *setup, shape gguf.Summary) int64 {
	key := s.plan.Models[0]
	if len(s.holders()) == 0 || s.pathOf(key) != "" {
		return 0
	}
	if s.hfDir != "" { // the converted file; none if it was made before
		return max(0, shape.TensorBytes-w.planned[key])
	}
	need := shape.TensorBytes
	if len(s.wantDirectory()) > 0 {
		need *= 2
	}
	dir, err := syntheticDir(s.synthSpec(key))
	if err != nil {
		return need
	}
	have := w.planned[key]
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error { // of what cannot be read nothing is there
		if err == nil && e.Type().IsRegular() {
			if info, err := e.Info(); err == nil {
				have += info.Size()
			}
		}
		return nil
	})
	if have >= need*99/100 {
		return 0
	}
	return need - min(have, need)
}

// before says that runs before this one take of the free disk; "" if none does.
func (w *wholePlanner) before() string {
	var sum int64
	for _, n := range w.planned {
		sum += n
	}
	if sum == 0 {
		return ""
	}
	return fmt.Sprintf(" after the %s of the runs above", gib(sum))
}

// freeDisk is what is free where weights are written; -1: not known.
func freeDisk() int64 {
	dir, err := os.UserCacheDir()
	if err != nil {
		return -1
	}
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return int64(st.Bavail) * int64(st.Bsize)
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return -1
		}
		dir = filepath.Dir(dir)
	}
}

// add makes a run of a setup, less what does not fit.
func (w *wholePlanner) add(name string, s *setup, m *model, weights []string) {
	if s.plan.Sweep() {
		for _, b := range s.backendsInUse() {
			if b.server != nil && b.server.NoIgnoreEOS {
				w.omit(name+" on "+b.name, "it cannot go on past end-of-sequence, which prompts and answers of exact lengths need")
				s.plan.Backends = without(s.plan.Backends, b.name)
			}
		}
	}
	if len(s.plan.Backends) == 0 {
		return
	}
	if err := s.plan.Validate(w.known.names()...); err != nil {
		w.omit(name, "%s", oneLine(err))
		return
	}
	if !w.fit(name, s, m) {
		return
	}
	disk := w.disk(s, m.shape)
	if w.free >= 0 && disk > 0 && disk+diskMargin > w.free {
		w.omit(name, "its weights take %s of disk, and %s is free in the cache%s (%s is to stay free)", gib(disk), gib(w.free), w.before(), gib(diskMargin))
		return
	}
	cells, err := s.plan.Cells()
	if err != nil {
		w.omit(name, "%s", oneLine(err))
		return
	}
	s.cells = cells
	w.free, w.planned[m.Key] = w.free-disk, w.planned[m.Key]+disk
	r := wholeRun{Name: name, Model: m.Key, Backends: s.plan.Backends, Cells: len(cells), Disk: disk, Args: w.args(s, weights)}
	asked := s.plan
	if asked.Sweep() {
		asked.Tasks = wholePlan().Tasks // they have a run of their own
	}
	r.Notes = asked.Notes()
	for _, c := range cells {
		r.Requests += c.Requests
	}
	if len(s.holders()) > 0 {
		d := s.demand(m, s.slots(), m.context)
		r.RAM, r.GPU = d.ram, d.gpu
	}
	r.Seconds, r.Least = s.guess(m)
	w.out.Runs = append(w.out.Runs, r)
}

// fit takes out of a run what does not fit into memory: first backends that do
// not fit even with one request at a time, then the most parallel requests or
// the longest prompts. It sets the context.
func (w *wholePlanner) fit(name string, s *setup, m *model) bool {
	context := func() { m.context = min(roundUp(s.plan.SlotContext(m.Model), contextStep), m.Context) }
	context()
	if s.yes {
		return true
	}
	lack := func(d demand) string {
		if len(s.graphics.rooms) > 0 && d.gpu > s.graphics.free() {
			return fmt.Sprintf("it needs about %s of GPU memory, and %s is free", gib(d.gpu), gib(s.graphics.free()))
		}
		return fmt.Sprintf("it needs about %s of memory, and %s is free", gib(d.ram), gib(s.machine.Memory.AvailableBytes))
	}
	least := func() int { // context that the shortest of what is asked needs
		if !s.plan.Sweep() {
			return m.context
		}
		short := s.plan
		short.PromptTokens = []int{slices.Min(short.PromptTokens)}
		return min(roundUp(short.SlotContext(m.Model), contextStep), m.Context)
	}()
	all := s.plan.Backends
	var kept []string
	for _, b := range all { // each alone, then all that are loaded at once
		s.plan.Backends = []string{b}
		if len(s.holders()) > 0 {
			if d := s.demand(m, 1, least); !s.fits(d) {
				w.omit(name+" on "+b, "does not fit: %s", lack(d))
				continue
			}
			s.plan.Backends = append(slices.Clone(kept), b)
			if d := s.demand(m, 1, least); !s.fits(d) {
				w.omit(name+" on "+b, "does not fit beside %s: together %s", strings.Join(kept, ", "), strings.TrimPrefix(lack(d), "it "))
				continue
			}
		}
		kept = append(kept, b)
	}
	s.plan.Backends = kept
	if len(kept) == 0 {
		return false
	}
	var over []int // lengths or numbers of requests that do not fit, the most first
	var last demand
	for len(s.holders()) > 0 {
		d := s.demand(m, s.slots(), m.context)
		if s.fits(d) {
			break
		}
		last = d
		if s.plan.Sweep() {
			most := slices.Max(s.plan.PromptTokens)
			if len(s.plan.PromptTokens) == 1 {
				w.omit(name, "does not fit: %s", lack(d))
				return false
			}
			over = append(over, most)
			s.plan.PromptTokens = slices.DeleteFunc(slices.Clone(s.plan.PromptTokens), func(n int) bool { return n == most })
			context()
			continue
		}
		most := slices.Max(s.plan.Concurrency)
		if len(s.plan.Concurrency) == 1 {
			w.omit(name, "does not fit: %s", lack(d))
			return false
		}
		over = append(over, most)
		s.plan.Concurrency = slices.DeleteFunc(slices.Clone(s.plan.Concurrency), func(n int) bool { return n == most })
	}
	switch {
	case len(over) == 0:
	case s.plan.Sweep():
		w.omit(fmt.Sprintf("%s, prompts of %s tokens", name, joined(over)), "does not fit: of %d %s", over[len(over)-1], lack(last))
	default:
		w.omit(fmt.Sprintf("%s, %s requests at once", name, joined(over)), "does not fit: at %d %s", over[len(over)-1], lack(last))
	}
	return true
}

// args are compare's.
func (w *wholePlanner) args(s *setup, weights []string) []string {
	p := s.plan
	ints := func(list []int) string { return strings.ReplaceAll(joined(list), " ", "") }
	args := []string{"--model", p.Models[0], "--backends", strings.Join(p.Backends, ",")}
	if p.Sweep() {
		args = append(args, "--prompt-tokens", ints(p.PromptTokens))
	} else {
		args = append(args, "--task", strings.Join(p.Tasks, ","))
	}
	args = append(args, "--mode", strings.Join(names(p.Modes), ","), "--concurrency", ints(p.Concurrency),
		"--repeat", fmt.Sprint(p.Repeats), "--requests", fmt.Sprint(p.Requests),
		"--request-timeout", p.RequestTimeout.String(), "--cell-timeout", p.CellTimeout.String())
	args = append(args, weights...)
	done := []string{"model", "backends", "task", "mode", "concurrency", "repeat", "requests", "request-timeout", "cell-timeout", "weights", "context-sweep", "time-budget", "out", "plan", "report"}
	for _, f := range w.c.Command.Flags {
		name := f.Names()[0]
		if !w.c.IsSet(name) || slices.Contains(done, name) {
			continue
		}
		if _, is := f.(*cli.BoolFlag); is {
			args = append(args, fmt.Sprintf("--%s=%t", name, w.c.Bool(name)))
			continue
		}
		if list, is := f.(*cli.StringSliceFlag); is {
			for _, v := range w.c.StringSlice(list.Name) {
				args = append(args, "--"+name, v)
			}
			continue
		}
		args = append(args, "--"+name, flagText(w.c, f))
	}
	return args
}

// What a guess of time assumes of machines and programs.
const (
	cpuBytesPerS, gpuBytesPerS = 20e9, 1.5e12 // memory read in decoding
	cpuFlops, gpuFlops         = 30e9, 1.5e14 // a second: of a core, of a GPU
	cpuStep, gpuStep           = 1e-3, 0.5e-3 // s a token beside that
	pythonLayerStep            = 1.2e-3       // likewise, of each layer of Transformers
	loadBytesPerS              = 2e9          // of weights from the page cache
	cellOverhead               = 1.5          // s of processes, waits

	// s until a server has answered its first request, beside loading: one in C++,
	// one that imports PyTorch and Transformers, one that compiles and captures
	// graphs besides (vLLM, containers).
	engineStart, torchStart, graphStart = 1.0, 30.0, 115.0
)

// guess is how long a run takes in seconds, give or take a factor of three: by
// the bytes of weights read for each token and the operations on it. least is as
// much as one load takes, the shortest, of all backends in all repeats.
func (s *setup) guess(m *model) (sum, least float64) {
	starts := 0.0
	for _, b := range s.backendsInUse() {
		if !s.startsServer(b.name) {
			continue
		}
		start := s.guessStart(b, m)
		if s.serverInTurn() && len(s.plan.Backends) > 1 {
			start *= float64(s.plan.Repeats)
		}
		starts += start
	}
	loads := map[string]float64{}
	for _, c := range s.cells {
		d := s.guessCell(c, m) + c.Cooldown.Seconds()
		sum += d
		loads[c.Load()] += d
	}
	if len(loads) > 0 {
		least = slices.Min(slices.Collect(maps.Values(loads)))
	}
	return starts + sum, starts + least
}

// startsServer says that a backend is a server that is started here.
func (s *setup) startsServer(name string) bool {
	b, err := s.known.find(name)
	return err == nil && b.server != nil && s.plan.Endpoints[name] == ""
}

// isTransformers says that a server runs on Transformers' own generate.
func isTransformers(b backend) bool {
	return b.server != nil && strings.HasPrefix(b.server.Python, "transformers")
}

// guessStart is what the start of a server takes, s.
func (s *setup) guessStart(b backend, m *model) float64 {
	start := engineStart
	switch {
	case isTransformers(b):
		start = torchStart
	case b.server.Python != "" || s.contained(b):
		start = graphStart
	}
	return start + float64(m.shape.TensorBytes)/loadBytesPerS
}

// guessCell is what a cell takes when its server is up, s, without its cooldown.
func (s *setup) guessCell(c plan.Cell, m *model) float64 {
	b, err := s.known.find(c.Backend)
	if err != nil {
		return cellOverhead
	}
	gpu := len(s.graphics.rooms) > 0 && s.engine.GPULayers != 0
	bytes, params := float64(m.shape.TensorBytes), float64(m.shape.Params)
	python := b.server != nil && b.server.Python != ""
	serial := isTransformers(b)
	rate, flops, step := cpuBytesPerS, cpuFlops*float64(max(s.engine.BatchThreads, 1)), cpuStep
	if gpu && (python || s.graphics.engine == "") {
		rate, flops, step = gpuBytesPerS, gpuFlops, gpuStep
	} else if python {
		rate /= 2 // f32
	}
	at := c.Concurrency
	if serial {
		step += pythonLayerStep * float64(m.shape.Layers)
		at = 1
	}
	prompt := c.Prompt
	if t, err := plan.TaskByKey(c.Task); err == nil {
		prompt = (t.InputTokens[0] + t.InputTokens[1]) / 2
	}
	token := step + max(bytes/rate, 2*params*float64(at)/flops)
	round := float64(at)*2*params*float64(prompt)/flops + float64(c.Sampling.MaxTokens)*token
	sum := cellOverhead + round*float64(c.Requests+c.Warmup*c.Concurrency)/float64(at)
	if b.server == nil {
		sum += bytes / loadBytesPerS
	}
	return sum
}
