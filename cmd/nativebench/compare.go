package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
)

func compareCommand(known registry) *cli.Command {
	d := plan.Default()
	var about string
	for _, b := range known {
		about += fmt.Sprintf("\n   %-18s %s", b.name, b.about)
	}
	return &cli.Command{
		Name:  "compare",
		Usage: "measure backends side by side: the bare model, and servers of it",
		Description: "Examples:\n" +
			"   nativebench compare --model phi-2                        the whole experiment for phi-2\n" +
			"   nativebench compare --weights synthetic                  gpt2 with random numbers: no download\n" +
			"   nativebench compare --task chat --mode stream --concurrency 1,4\n" +
			"   nativebench compare --gguf model.gguf --model phi-2 --repeat 5\n" +
			"   nativebench compare --prompt-tokens 32,64,128,256,512    context scaling\n" +
			"   nativebench compare --backends native,vllm,transformers  servers in Python, started here\n" +
			"   nativebench compare --endpoint vllm=http://host:8000     a server that runs already\n" +
			"   nativebench compare --resume runs/20260102-030405-gpt2   complete a run\n\n" +
			"Ctrl-C once ends the run after the requests in flight and reports what is there;\n" +
			"twice stops now. What was measured is kept either way.\n\n" +
			"Backends:" + about,
		Flags: slices.Concat(
			[]cli.Flag{&cli.StringSliceFlag{Name: "backends", Aliases: []string{"backend"}, Category: flagsWhat, Value: cli.NewStringSlice(d.Backends...), Usage: "`NAME,…`: see above; ratios are against native if it is there, else against the first"}},
			planFlags(), weightFlags(), outputFlags()),
		Action: func(c *cli.Context) error { return measureAction(c, known, d) },
	}
}

// measureAction is compare and run: check, prepare, run, report.
func measureAction(c *cli.Context, known registry, base plan.Plan) error {
	if err := noArguments(c); err != nil {
		return err
	}
	if err := checkValues(c); err != nil {
		return err
	}
	if err := checkTraceFlag(c); err != nil {
		return err
	}
	s := newSetup(c, known, base)
	if c.IsSet("resume") {
		var err error
		if s, err = resumeSetup(c, known); err != nil {
			return err
		}
	}
	if err := s.check(); err != nil {
		return err
	}
	stop := listen(c.Context, c.App.ErrWriter)
	defer stop.close()
	if err := s.readyToRun(stop, c.App.ErrWriter); err != nil {
		if stop.stopped() {
			return exitStatus(exitInterrupted) // nothing was measured yet
		}
		if not := notHereYet(nil); errors.As(err, &not) {
			fmt.Fprintln(c.App.ErrWriter, not)
			s.listCells(c.App.Writer, s.todo())
			return nil
		}
		return err
	}
	manifest, err := s.newManifest(argv(c))
	if err != nil {
		return err
	}
	todo := s.order(s.todo())
	if c.Bool("dry-run") {
		s.header(c.App.ErrWriter, todo)
		s.listCells(c.App.Writer, todo)
		return nil
	}
	stopPprof := func() error { return nil }
	if !isAddress(s.pprof) { // there, the processes of the cells answer
		if stopPprof, err = startPprof(s.pprof, c.Command.Name); err != nil {
			return refuse("--pprof %s: %w", s.pprof, err)
		}
	}
	err = s.runAndReport(c, stop, manifest, todo)
	if pprofErr := stopPprof(); pprofErr != nil {
		fmt.Fprintf(c.App.ErrWriter, "warning: --pprof: %v\n", pprofErr)
	}
	return err
}

func (s *setup) listCells(w io.Writer, todo []int) {
	for _, i := range todo {
		fmt.Fprintln(w, s.cells[i].ID())
	}
}

func (s *setup) readyToRun(stop *stopper, out io.Writer) error {
	ctx, cancel := stop.either()
	defer cancel()
	return s.prepare(ctx, newLiveLine(out))
}

// runAndReport runs the cells and reports the directory, however the run ends.
func (s *setup) runAndReport(c *cli.Context, stop *stopper, manifest *results.Manifest, todo []int) (err error) {
	x := &execution{setup: s, stop: stop, show: newProgress(c.App.ErrWriter, s.at(todo)), manifest: manifest, costs: s.newCosts(), attempt: map[string]int{}}
	for _, run := range startsOf(c.Context) {
		x.costs.learnStarts(run)
	}
	if x.command, err = cellProcess(); err != nil {
		return err
	}
	for _, cell := range s.cells {
		x.attempt[cell.ID()] = 1
	}
	if s.resumed == nil {
		x.w, err = s.create(manifest)
	} else {
		err = x.reopen(c.App.ErrWriter, len(todo) > 0)
	}
	if err != nil {
		return usageError{err}
	}
	s.header(c.App.ErrWriter, todo)
	stop.measures.Store(true)
	runErr := x.run(todo)
	err = errors.Join(runErr, x.w.Close())
	if runErr != nil {
		err = runErr // Close repeats it
	}
	if err != nil {
		fmt.Fprintf(c.App.ErrWriter, "nativebench: %v\n", err)
	}
	if reportErr := showRun(c.App.Writer, s.out, s.format); reportErr != nil {
		return reportErr
	}
	fmt.Fprintf(c.App.ErrWriter, "\nrun directory: %s\n", s.out)
	var traceErr error
	if path := c.String("trace"); path != "" {
		if traceErr = writeTrace(c.App.ErrWriter, s.out, path); traceErr != nil {
			fmt.Fprintf(c.App.ErrWriter, "nativebench: %v; the run itself is kept: nativebench trace %s -o FILE writes it again\n", traceErr, s.out)
		}
	}
	for _, line := range notOneModel(x.manifest) {
		fmt.Fprintln(c.App.ErrWriter, line)
	}
	if s.budget > 0 && x.left > 0 && !stop.stopped() && err == nil {
		fmt.Fprintf(c.App.ErrWriter, "the time budget of %s has no room for more: %d of %d cells were not started; go on with: nativebench %s --resume %s\n", s.budget, x.left, len(todo), c.Command.Name, s.out)
	}
	switch {
	case err != nil:
		return exitStatus(exitError)
	case stop.stopped() && x.left > 0: // not when all was done by then
		fmt.Fprintf(c.App.ErrWriter, "stopped; complete it with: nativebench %s --resume %s\n", c.Command.Name, s.out)
		return exitStatus(exitInterrupted)
	case traceErr != nil:
		return exitStatus(exitError)
	case s.budget > 0 && x.left > 0 && x.left == len(todo) && !inWhole(c.Context):
		fmt.Fprintf(c.App.ErrWriter, "nativebench: --time-budget %s: nothing was measured: there is no time for a single cell: give more\n", s.budget)
		return exitStatus(exitError)
	case x.failed > 0:
		return exitStatus(exitCellsFailed)
	}
	return nil
}

// argv is the command line.
func argv(c *cli.Context) []string {
	if args, known := c.App.Metadata[argvKey].([]string); known {
		return args
	}
	return os.Args
}

// create makes the run directory; under the default name, another run may have
// taken it since the check.
func (s *setup) create(manifest *results.Manifest) (*results.Writer, error) {
	if s.ownName {
		if err := os.MkdirAll(filepath.Dir(s.out), 0o755); err != nil {
			return nil, err
		}
		for errors.Is(os.Mkdir(s.out, 0o755), fs.ErrExist) { // another error is Create's to tell
			s.out = freeName(s.out)
		}
	}
	return results.Create(s.out, manifest)
}

// reopen takes a run up where it was left. measures says that stamps will be
// added to it.
func (x *execution) reopen(out io.Writer, measures bool) error {
	clock := x.manifest.Clock
	differences, err := x.sameRun(x.manifest)
	if err != nil {
		return err
	}
	w, run, err := results.Resume(x.out)
	if err != nil {
		return err
	}
	x.w, x.resumed, x.manifest = w, run, &run.Manifest
	for _, c := range x.cells {
		x.attempt[c.ID()] = run.NextAttempt(c.ID())
	}
	for _, d := range run.Damage {
		fmt.Fprintln(out, "note: "+d)
	}
	for _, d := range differences {
		fmt.Fprintln(out, "warning: "+d)
	}
	x.manifest.Environment.Warnings = append(x.manifest.Environment.Warnings, differences...)
	if measures {
		clock.EventsBefore = len(run.Events)
		x.manifest.Clocks = append(x.manifest.Clocks, clock)
	}
	if len(differences) > 0 || measures {
		return w.SetManifest(x.manifest)
	}
	return nil
}
