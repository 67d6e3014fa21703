package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/nativebench/nativebench/httpbackends"
	"github.com/nativebench/nativebench/internal/hub"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/telemetry"
	"github.com/nativebench/nativebench/native"
)

// setup is a run that was asked for: first what the flags say, then, check by
// check, what it takes. Nothing is started and nothing is written but caches of
// weights until all checks have passed.
type setup struct {
	known  registry
	plan   plan.Plan
	cells  []plan.Cell
	engine plan.Engine // of the plan, threads resolved

	engineDir string
	weights   string // fromHub, synthetic or a path
	hfDir     string // a Hugging Face directory of the user's; "": none
	dtype     string // of weights that are made
	revision  string // on the hub; "": the default branch
	layers    int    // of synthetic weights; 0: the model's
	width     int    // of synthetic weights; 0: the model's
	out       string
	twice     bool // --weights and --gguf
	offline   bool // nothing may be downloaded
	dry       bool // nothing will be measured

	weightsGiven, dtypeGiven bool

	weightsFlag string // by which of these the file was named
	format      string
	pprof       string // where our own processes are profiled; "": nowhere
	yes         bool

	inTurn  bool          // one backend is loaded at a time
	budget  time.Duration // no cell is started after; 0: no limit
	ownName bool          // out is not of --out
	wait    time.Duration // until a server is ready, at most

	resumed      *results.Run      // what is there already; nil for a new run
	resumedPaths map[string]string // the weights it began with, by model
	resumedDirs  map[string]string // the same as Hugging Face directories
	machine      telemetry.Machine
	gpus         gpuSet
	graphics     graphics                 // their memory
	snapshots    map[string]*hub.Snapshot // of models whose weights are the hub's
	models       map[string]*model        // by key; of backends that hold weights
	prompts      promptBook
	attached     map[string]*seat      // endpoints in use, by backend; they have made a token
	counts       []results.PromptCount // how they were counted, by model
	countNotes   []string
	tokens       map[string]map[string]int // of the prompts, by model and id, where exact
}

// newSetup reads the flags onto base, the plan that they change.
func newSetup(c *cli.Context, known registry, base plan.Plan) *setup {
	s := &setup{
		known: known, plan: base, snapshots: map[string]*hub.Snapshot{},
		engineDir: c.String("engine-dir"), weights: c.String("weights"), weightsFlag: "--weights", hfDir: absolute(c.String("hf-dir")), dtype: c.String("dtype"),
		revision: c.String("revision"), offline: c.Bool("offline") || hub.Forbidden(), dry: c.Bool("dry-run"),
		weightsGiven: c.IsSet("weights"), dtypeGiven: c.IsSet("dtype"),
		layers: c.Int("layers"), width: c.Int("width"),
		out: c.String("out"), format: c.String("format"), pprof: c.String("pprof"), yes: c.Bool("yes"), wait: c.Duration("ready-timeout"), budget: c.Duration("time-budget"),
	}
	applyPlanFlags(c, &s.plan)
	if s.weights != synthetic && s.weights != fromHub {
		s.weights = absolute(s.weights)
	}
	if c.IsSet("gguf") {
		s.weights, s.weightsFlag, s.twice = absolute(c.String("gguf")), "--gguf", c.IsSet("weights")
	}
	if s.engineDir == "" {
		s.engineDir = native.DefaultDir()
	}
	if !isAddress(s.pprof) {
		s.pprof = absolute(s.pprof)
	}
	if s.out == "" {
		s.out, s.ownName = freeName(filepath.Join("runs", time.Now().UTC().Format("20060102-150405")+"-"+strings.Join(s.plan.Models, "+"))), true
	}
	return s
}

// freeName is the name, with the first number appended under which nothing is
// there yet.
func freeName(name string) string {
	for free, n := name, 2; ; free, n = fmt.Sprintf("%s-%d", name, n), n+1 {
		if _, err := os.Lstat(free); err != nil {
			return free
		}
	}
}

// absolute makes a path that stays right when a run is resumed elsewhere.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil && path != "" {
		return abs
	}
	return path
}

// check refuses what cannot run, cheapest checks first.
func (s *setup) check() error {
	if s.twice {
		return refuse("--weights and --gguf both name the model's file: give one of them")
	}
	if err := s.plan.Validate(s.known.names()...); err != nil {
		return usageError{err}
	}
	var err error
	if s.cells, err = s.plan.Cells(); err != nil {
		return usageError{err}
	}
	if err := checkFormat(s.format); err != nil {
		return err
	}
	if s.wait <= 0 {
		return refuse("--ready-timeout %s: give a time over 0", s.wait)
	}
	if s.budget < 0 {
		return refuse("--time-budget %s: give a time over 0, or 0 for no limit", s.budget)
	}
	if s.resumed == nil {
		if err := checkOut(s.out); err != nil {
			return err
		}
	}
	if err := checkPprof(s.pprof); err != nil {
		return err
	}
	if err := s.checkServers(); err != nil {
		return err
	}
	if err := s.checkProfile(); err != nil {
		return err
	}
	for _, name := range s.plan.Backends {
		b, err := s.known.find(name)
		if err != nil {
			return usageError{err}
		}
		if s.plan.Endpoints[name] != "" {
			continue
		}
		check := func() error { return b.check(s.engineDir) }
		if s.contained(b) {
			check = func() error { return dockerAnswers(b.name) }
		}
		if err := check(); err != nil {
			return usageError{err}
		}
	}
	if err := s.checkVocab(); err != nil {
		return err
	}
	return s.checkWeights()
}

// checkOut refuses a run directory that exists or cannot be made.
func checkOut(dir string) error {
	if st, err := os.Lstat(dir); err == nil {
		if !st.IsDir() {
			return refuse("--out %s: there is a file of that name; name a directory that does not exist yet", dir)
		}
		if _, err := os.Stat(filepath.Join(dir, "manifest.json")); err == nil {
			return refuse("--out %s: there is a run already; name another directory, or complete that run with --resume %s", dir, dir)
		}
		return refuse("--out %s: the directory exists; name one that does not exist yet", dir)
	} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return refuse("--out %s: %w", dir, err)
	}
	parent, err := filepath.Abs(dir)
	if err != nil {
		return refuse("--out %s: %w", dir, err)
	}
	for {
		parent = filepath.Dir(parent)
		st, err := os.Stat(parent)
		switch {
		case err == nil && !st.IsDir():
			return refuse("--out %s: %s is a file, not a directory", dir, parent)
		case err == nil:
			if err := unix.Access(parent, unix.W_OK|unix.X_OK); err != nil {
				return refuse("--out %s: cannot write into %s: %w; choose another --out", dir, parent, err)
			}
			return nil
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
			return refuse("--out %s: %w", dir, err)
		}
	}
}

// backendsInUse are the rows of the plan's backends.
func (s *setup) backendsInUse() (rows []backend) {
	for _, name := range s.plan.Backends {
		if b, err := s.known.find(name); err == nil {
			rows = append(rows, b)
		}
	}
	return rows
}

// holders are the backends that load the weights on this machine.
func (s *setup) holders() (rows []backend) {
	return slices.DeleteFunc(s.backendsInUse(), func(b backend) bool {
		return !b.holdsWeights && !s.contained(b) || s.plan.Endpoints[b.name] != ""
	})
}

// slots is how many requests a backend serves at once: the same for all, and
// for all cells, because a server is started once.
func (s *setup) slots() int { return slices.Max(s.plan.Concurrency) }

// resolveThreads turns "as many as there are cores" into a number, so that all
// engines get the same one. It needs s.machine.
func (s *setup) resolveThreads() {
	s.engine = s.plan.Engine
	if s.engine.Threads == 0 {
		s.engine.Threads = s.machine.Cores
		if p := s.machine.PhysicalCores; p > 0 {
			s.engine.Threads = min(p, s.machine.Cores)
		}
	}
	if s.engine.BatchThreads == 0 {
		s.engine.BatchThreads = s.engine.Threads
	}
}

// look looks at the machine.
func (s *setup) look() {
	s.machine = telemetry.Inspect()
	if s.gpus = (gpuSet{why: "not available: --gpu-layers 0 leaves the GPU alone"}); s.plan.Engine.GPULayers != 0 {
		s.gpus = findGPUs()
	}
	s.graphics = lookGraphics(s.gpus, s.engineDir)
	s.resolveThreads()
}

// prepare looks at the machine, finds or makes the weights, renders the
// prompts and compares need and free memory. show tells what takes its time.
func (s *setup) prepare(ctx context.Context, show *liveLine) error {
	s.look()
	s.models = map[string]*model{}
	if len(s.holders()) > 0 {
		if err := s.obtain(ctx, show); err != nil {
			return err
		}
		for _, key := range s.plan.Models {
			m, err := s.findModel(ctx, key, show)
			if err != nil {
				return err
			}
			s.models[key] = m
		}
		if err := s.checkMemory(); err != nil {
			return err
		}
	}
	if err := s.makePrompts(); err != nil {
		return err
	}
	return s.reach(ctx, show)
}

// place says where a backend serves a model.
func (s *setup) place(name, modelKey string) place {
	p := place{
		engineDir: s.engineDir, slots: s.slots(), wait: s.wait, say: func(string) {},
		endpoint: s.plan.Endpoints[name], servedModel: s.plan.ServedModels[name], keyVariable: s.plan.KeyVariables[name],
		docker: s.plan.Launch == launchDocker,
		chat:   s.plan.Route == "chat", prefixCache: s.plan.PrefixCache, insecure: s.plan.Insecure,
	}
	p.model, _ = plan.ModelByKey(modelKey) // the plan was validated
	if m := s.models[modelKey]; m != nil {
		p.weights, p.context = m.file, m.context
	} else {
		p.context = s.plan.SlotContext(p.model)
	}
	p.engine = s.engine.Resolve(p.slots, p.context)
	for _, c := range s.cells {
		sp := c.Sampling
		sp.Seed, sp.MaxTokens = 0, 0
		if c.Backend == name && c.Model == modelKey && !slices.Contains(p.samplings, sp) {
			p.samplings = append(p.samplings, sp)
		}
	}
	return p
}

// reach makes sure that the endpoints of the cells still to run can generate,
// before anything is started or written.
func (s *setup) reach(ctx context.Context, show *liveLine) error {
	s.attached = map[string]*seat{}
	for _, c := range s.at(s.todo()) {
		if s.plan.Endpoints[c.Backend] == "" || s.attached[c.Backend] != nil {
			continue
		}
		b, err := s.known.find(c.Backend)
		if err != nil {
			return usageError{err}
		}
		p := s.place(c.Backend, c.Model)
		said := ""
		p.say = func(what string) {
			if show.draw(what); what != said {
				show.line(what)
				said = what
			}
		}
		at, err := b.ready(ctx, p)
		show.erase()
		if err != nil {
			return refuse("%s", oneLine(err))
		}
		s.attached[c.Backend] = at
	}
	return nil
}

// variableName is how variables that hold keys are named; few keys look so.
var variableName = regexp.MustCompile(`^[A-Z_][A-Z0-9_]*$`)

// checkServers refuses endpoints and routes that cannot be had.
func (s *setup) checkServers() error {
	for _, of := range []struct {
		flag string
		m    map[string]string
	}{{"endpoint", s.plan.Endpoints}, {"served-model", s.plan.ServedModels}, {"api-key-env", s.plan.KeyVariables}} {
		for _, name := range slices.Sorted(maps.Keys(of.m)) {
			value := of.m[name]
			b, err := s.known.find(name)
			switch {
			case err != nil:
				return refuse("--%s: %w", of.flag, err)
			case value == "":
				return refuse("--%s %s: nothing follows; write %s=…", of.flag, name, name)
			case b.server == nil:
				return refuse("--%s %s: %s runs in process and has no endpoint", of.flag, name, name)
			case of.flag == "endpoint":
				if err := httpbackends.CheckEndpoint(*b.server, value); err != nil {
					return refuse("--endpoint: %w", err)
				}
			case s.plan.Endpoints[name] == "":
				return refuse("--%s %s: it goes with --endpoint %s=URL", of.flag, name, name)
			case of.flag == "api-key-env" && os.Getenv(value) != "":
			case of.flag == "api-key-env" && variableName.MatchString(value):
				return refuse("--api-key-env %s=%s: that variable is not set", name, value)
			case of.flag == "api-key-env": // perhaps the key itself, which is not repeated
				return refuse("--api-key-env %s: what follows names no variable that is set: export the key in one and give its name", name)
			}
		}
	}
	switch s.plan.Launch {
	case "", launchProcess, launchDocker, launchNone:
	default:
		return refuse("--launch %s: choose %s, %s or %s", s.plan.Launch, launchProcess, launchDocker, launchNone)
	}
	switch s.plan.Route {
	case "", "completions", "chat":
	default:
		return refuse("--route %s: choose completions or chat", s.plan.Route)
	}
	for _, b := range s.backendsInUse() {
		switch {
		case b.server == nil:
		case s.contained(b) && s.plan.Endpoints[b.name] == "" && b.server.ImageNeedsGPU && (!hasGPU() || s.plan.Engine.GPULayers == 0):
			why := "this machine has none"
			if hasGPU() {
				why = "--gpu-layers 0 forbids it"
			}
			other := "--endpoint " + b.name + "=URL of one that runs elsewhere"
			if b.server.Program != "" {
				other = "--launch process, or " + other
			}
			return refuse("--launch docker: the image of %s, %s, works on an NVIDIA GPU only, and %s: give %s", b.name, b.server.Image, why, other)
		case s.plan.Launch == launchNone && s.plan.Endpoints[b.name] == "":
			return refuse("--launch none: %s has no --endpoint %s=URL; give one, or choose other --backends", b.name, b.name)
		case s.plan.Route == "chat" && b.server.ChatRoute == "":
			return refuse("--route chat: %s has no chat route; choose other --backends", b.name)
		case b.server.NoIgnoreEOS && (s.plan.IgnoreEOS || s.plan.Sweep()):
			return refuse("%s cannot go on past end-of-sequence, which --ignore-eos and --prompt-tokens need: choose other --backends", b.name)
		case s.plan.Endpoints[b.name] != "" && len(s.plan.Models) > 1:
			return refuse("--endpoint %s serves one model, but %d are asked for (%s): name one --model", b.name, len(s.plan.Models), strings.Join(s.plan.Models, ", "))
		}
	}
	return nil
}

// notes are what must be known of the plan on this machine.
func (s *setup) notes() []string {
	var notes []string
	if note := profileNote(s.plan); note != "" {
		notes = append(notes, note)
	}
	if note := pprofNote(s.pprof); note != "" {
		notes = append(notes, note)
	}
	notes = append(notes, s.plan.Notes()...)
	if list := s.wantDirectory(); len(list) > 0 && !hasGPU() {
		var names []string
		for _, b := range list {
			names = append(names, b.name)
		}
		var types []string
		for _, key := range s.plan.Models {
			if m := s.models[key]; m != nil && !slices.Contains(types, m.file.DType) {
				types = append(types, m.file.DType)
			}
		}
		note := strings.Join(names, ", ") + ": computing in float32, which is what they do best on a CPU"
		var others []string
		for _, b := range s.holders() {
			if !slices.Contains(names, b.name) {
				others = append(others, b.name)
			}
		}
		if len(others) > 0 {
			note += fmt.Sprintf("; %s with %s weights", strings.Join(others, ", "), strings.Join(types, ", "))
		}
		notes = append(notes, note)
	}
	for _, name := range slices.Sorted(maps.Keys(s.plan.Endpoints)) {
		unchecked := "that its caches are off"
		if s.plan.NoVerify || len(s.plan.Backends) < 2 {
			these := ""
			if len(s.holders()) > 0 {
				these = " with these weights"
			}
			unchecked = fmt.Sprintf("that it serves %s%s, and with its caches off,", strings.Join(s.plan.Models, ", "), these)
		}
		notes = append(notes, fmt.Sprintf("%s runs at %s and was not started here: %s was not checked", name, s.plan.Endpoints[name], unchecked))
		if at := s.attached[name]; at != nil {
			if m, err := plan.ModelByKey(s.plan.Models[0]); err == nil && !soundsLike(at.entry.Model, m) {
				notes = append(notes, fmt.Sprintf("%s calls its model %q: that does not say that it is %s, as whose its numbers stand here", name, at.entry.Model, m.Key))
			}
		}
	}
	if s.plan.NoVerify && len(s.plan.Backends) > 1 {
		notes = append(notes, "that the backends run the same model was not checked (--no-verify)")
	}
	for _, c := range s.counts {
		if !c.Exact {
			notes = append(notes, fmt.Sprintf("%s: the lengths of its prompts are %s", c.Model, countText(c)))
		}
	}
	notes = append(notes, s.countNotes...)
	if s.plan.PrefixCache {
		notes = append(notes, "servers may reuse the KV cache of earlier prompts (--prefix-cache); native never does, so first tokens compare different work")
	}
	if s.plan.Route == "chat" {
		note := "servers were asked through their chat route and rendered the prompts by their own templates"
		if slices.Contains(s.plan.Backends, "native") {
			note += "; native got the prompts rendered here"
		}
		notes = append(notes, note)
	}
	return notes
}

func gib(bytes int64) string {
	if bytes < 1<<30 {
		return fmt.Sprintf("%.0f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
}
