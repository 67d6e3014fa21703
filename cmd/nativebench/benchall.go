package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/report"
	"github.com/nativebench/nativebench/internal/results"
)

// Files of a directory of bench-all. Each run in runs/ is one of compare.
const (
	allState  = "bench-all.json"
	allRuns   = "runs"
	allReport = "report"
)

// allSchema is the version of bench-all.json.
const allSchema = 1

// wholeBench is what bench-all.json keeps: what was asked for, and what was made
// of it on this machine. A second call completes exactly that.
type wholeBench struct {
	Schema  int               `json:"schema"`
	Created time.Time         `json:"created"`
	Command []string          `json:"command"`
	Options map[string]string `json:"options"` // flags that were given, of those that decide what is measured
	Runs    []wholeRun        `json:"runs"`    // in the order in which they are measured
	Omitted []report.Omission `json:"omitted"` // asked for, and not in the runs
}

// wholeRun is one run of compare.
type wholeRun struct {
	Name     string   `json:"name"`
	Model    string   `json:"model"`
	Args     []string `json:"args"` // of compare, without --out
	Backends []string `json:"backends"`
	Notes    []string `json:"notes,omitempty"` // where it is not what was asked word for word

	// What was foreseen.
	Cells    int     `json:"cells"`
	Requests int     `json:"requests"`                // measured ones
	Seconds  float64 `json:"seconds"`                 // a rough guess
	Least    float64 `json:"least_seconds,omitempty"` // likewise, of one load, of all backends in all repeats
	RAM      int64   `json:"ram_bytes"`
	GPU      int64   `json:"gpu_bytes"`
	Disk     int64   `json:"disk_bytes"` // weights still to be written
}

func benchAllCommand(known registry) *cli.Command {
	d := wholePlan()
	const limit = "limit"
	own := []cli.Flag{
		&cli.StringSliceFlag{Name: "model", Aliases: []string{"models"}, Category: flagsWhat, Value: cli.NewStringSlice(d.Models...), Usage: "`MODEL,…`: " + modelKeys()},
		&cli.StringSliceFlag{Name: "task", Aliases: []string{"tasks"}, Category: flagsWhat, Value: cli.NewStringSlice(d.Tasks...), Usage: "`TASK,…`: " + strings.Join(d.Tasks, ", ")},
		&cli.StringSliceFlag{Name: "backends", Aliases: []string{"backend"}, Category: flagsWhat, Usage: "`NAME,…`", DefaultText: "all that are found here"},
		&cli.IntSliceFlag{Name: "concurrency", Category: flagsWhat, Value: cli.NewIntSlice(d.Concurrency...), Usage: "`N,…`: requests at once, closed loop"},
		&cli.StringFlag{Name: "context-sweep", Category: flagsWhat, Value: limit, Usage: "`N,…`: prompts of exactly so many tokens, one request at a time, besides the tasks; limit: 128 and its doubles to each model's limit; none"},
		&cli.DurationFlag{Name: "request-timeout", Category: flagsHow, Value: d.RequestTimeout, Usage: "time limit of one request: a server that takes one at a time lets the last of 64 wait long"},
		&cli.DurationFlag{Name: "cell-timeout", Category: flagsHow, Value: d.CellTimeout, Usage: "time limit of one cell, model load included"},
		&cli.DurationFlag{Name: "time-budget", Category: flagsHow, Usage: "spend no more than about so long in this call: the runs share it by what they would take, and measure as many loads as all backends have time for in all repeats, what is worth most first: streams before sync, few requests at once before many. What is left out is said. 0: no limit"},
		&cli.StringSliceFlag{Name: "weights", Category: flagsModel, Value: cli.NewStringSlice(synthetic), Usage: "`WHERE`: synthetic; hub, what models pull has downloaded; or MODEL=PATH,… of GGUF files and Hugging Face directories"},
		&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Category: flagsOutput, Value: filepath.Join("runs", "bench-all"), Usage: "`DIR`: for all runs and the report. One that is there already is completed"},
		&cli.BoolFlag{Name: "plan", Category: flagsOutput, Usage: "print the plan and stop"},
		&cli.BoolFlag{Name: "report", Category: flagsOutput, Usage: "measure nothing: report what DIR has by now, and stop"},
		&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Category: flagsOutput, Usage: "leave nothing out for memory that may not suffice"},
	}
	taken := map[string]bool{"prompt-tokens": true, "prompts": true, "gguf": true, "hf-dir": true}
	for _, f := range own {
		taken[f.Names()[0]] = true
	}
	rest := slices.DeleteFunc(append(planFlags(), weightFlags()...), func(f cli.Flag) bool { return taken[f.Names()[0]] })
	return &cli.Command{
		Name:  "bench-all",
		Usage: "everything: all models, tasks, backends, modes, loads and context lengths, and one report",
		Description: "Examples:\n" +
			"   nativebench bench-all --plan                     what it would do, how long, what it needs\n" +
			"   nativebench bench-all                            do it; the same again goes on where it stopped\n" +
			"   nativebench bench-all --models gpt2,phi-2 --backends native,llama-server,vllm\n" +
			"   nativebench bench-all --time-budget 2h           the most telling part of it\n" +
			"   nativebench bench-all --weights hub              real weights, as models pull downloads them\n\n" +
			"Each model is a run of compare in DIR/runs for its tasks, and one for its context lengths;\n" +
			"DIR/report answers the experiment's questions from all of them. What is missing here (a\n" +
			"backend, weights, memory) is left out, and the report says so. Ctrl-C as in compare.",
		Flags:  append(own, rest...),
		Action: func(c *cli.Context) error { return benchAllAction(c, known) },
	}
}

// wholePlan is what bench-all asks unless told otherwise: the experiment.
func wholePlan() plan.Plan {
	p := plan.Default()
	p.Models = nil
	for _, m := range plan.Models() {
		if !m.Beyond() {
			p.Models = append(p.Models, m.Key)
		}
	}
	p.Concurrency = []int{1, 4, 16, 64}
	p.RequestTimeout, p.CellTimeout = 20*time.Minute, time.Hour
	return p
}

func benchAllAction(c *cli.Context, known registry) error {
	if err := noArguments(c); err != nil {
		return err
	}
	if err := checkValues(c); err != nil {
		return err
	}
	if b := c.Duration("time-budget"); b < 0 {
		return refuse("--time-budget %s: give a time over 0, or 0 for no limit", b)
	}
	dir := filepath.Clean(c.String("out"))
	w, err := readWhole(dir)
	if err != nil {
		return err
	}
	begun := w != nil
	asked := optionsOf(c)
	if begun {
		if changed := changedOptions(asked, w.Options); len(changed) > 0 {
			return refuse("--out %s: it was begun with other flags (%s): give none of them to complete it, or name another --out", dir, strings.Join(changed, "; "))
		}
	} else if w, err = planWhole(c, known, asked); err != nil {
		return err
	}
	if c.Bool("plan") {
		w.print(c.App.Writer, dir, c.Duration("time-budget"))
		return nil
	}
	if c.Bool("report") {
		if !begun {
			return refuse("--report: there is no %s in %s: begin it without --report, or name another --out", allState, dir)
		}
		return w.report(c, dir, w.unbegun(dir, w.Omitted, "not begun yet"))
	}
	if !begun {
		if err := checkOut(dir); err != nil {
			return err
		}
		if err := w.save(dir); err != nil {
			return err
		}
	}
	release, err := lockWhole(dir)
	if err != nil {
		return err
	}
	defer release()
	w.print(c.App.ErrWriter, dir, c.Duration("time-budget"))
	return w.run(c, known, dir)
}

// optionsOf are the flags given that decide what is measured.
func optionsOf(c *cli.Context) map[string]string {
	m := map[string]string{}
	for _, f := range c.Command.Flags {
		switch name := f.Names()[0]; name {
		case "out", "plan", "report", "time-budget":
		default:
			if c.IsSet(name) {
				m[name] = flagText(c, f)
			}
		}
	}
	return m
}

// flagText is a flag's value as it may be given again.
func flagText(c *cli.Context, f cli.Flag) string {
	name := f.Names()[0]
	switch f.(type) {
	case *cli.StringSliceFlag:
		return strings.Join(c.StringSlice(name), ",")
	case *cli.IntSliceFlag:
		return strings.ReplaceAll(joined(c.IntSlice(name)), " ", "")
	}
	return fmt.Sprint(c.Value(name))
}

// changedOptions are the flags given that differ from those that a directory was
// begun with; where none does, those that are not given again.
func changedOptions(asked, was map[string]string) (changed []string) {
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		switch then, before := was[name]; {
		case !before:
			changed = append(changed, fmt.Sprintf("--%s %s, was not given", name, asked[name]))
		case asked[name] != then:
			changed = append(changed, fmt.Sprintf("--%s %s, was %s", name, asked[name], then))
		}
	}
	if len(asked) == 0 || len(changed) > 0 {
		return changed
	}
	for _, name := range slices.Sorted(maps.Keys(was)) {
		if _, given := asked[name]; !given {
			changed = append(changed, fmt.Sprintf("--%s is not given, was %s", name, was[name]))
		}
	}
	return changed
}

// readWhole returns nil where nothing was begun.
func readWhole(dir string) (*wholeBench, error) {
	b, err := os.ReadFile(filepath.Join(dir, allState))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, refuse("--out %s: %w", dir, err)
	}
	var w wholeBench
	if err := json.Unmarshal(b, &w); err != nil {
		return nil, refuse("--out %s: %s cannot be read (%w): name another --out", dir, allState, err)
	}
	if w.Schema != allSchema {
		return nil, refuse("--out %s: it is of schema %d, this nativebench knows %d: complete it with the nativebench that began it, or name another --out", dir, w.Schema, allSchema)
	}
	return &w, nil
}

// save writes bench-all.json whole or not at all.
func (w *wholeBench) save(dir string) error {
	b, err := json.MarshalIndent(w, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, allRuns), 0o755); err != nil {
		return refuse("--out %s: %w", dir, err)
	}
	return writeWhole(filepath.Join(dir, allState), append(b, '\n'))
}

// writeWhole replaces a file, durably.
func writeWhole(path string, b []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = temp.Write(b)
	if err = errors.Join(err, temp.Chmod(0o644), temp.Sync(), temp.Close()); err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return nil
}

// lockWhole keeps a second bench-all out of the directory: it would measure beside
// the first. The lock falls with the process.
func lockWhole(dir string) (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, refuse("--out %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, refuse("--out %s: another nativebench is measuring there (%w): wait for it, or name another --out", dir, err)
	}
	return func() { f.Close() }, nil
}

func (r wholeRun) dir(whole string) string { return filepath.Join(whole, allRuns, r.Name) }

// progressOf is how far a run is: nil where it has not begun.
func (r wholeRun) progressOf(whole string) *results.Run {
	run, err := results.Read(r.dir(whole))
	if err != nil {
		return nil
	}
	return run
}

// left is which share of a run's cells has no result yet.
func (r wholeRun) left(whole string) float64 {
	run := r.progressOf(whole)
	if run == nil || len(run.Manifest.Cells) == 0 {
		return 1
	}
	return float64(len(run.Remaining())) / float64(len(run.Manifest.Cells))
}

// pace is how much longer cells took than was foreseen; 1 while nothing is known.
func (w *wholeBench) pace(dir string) float64 {
	foreseen, took := 0.0, 0.0
	for _, r := range w.Runs {
		run := r.progressOf(dir)
		if run == nil || len(run.Manifest.Cells) == 0 {
			continue
		}
		began := map[string]int64{}
		for _, e := range run.Events {
			switch e.State {
			case results.CellStarted:
				began[e.Cell] = e.T
			case results.CellDone:
				if at, known := began[e.Cell]; known && e.T > at {
					took += float64(e.T-at) / 1e9
				}
			}
		}
		foreseen += r.Seconds * (1 - r.left(dir))
	}
	if foreseen <= 0 || took <= 0 {
		return 1
	}
	return took / foreseen
}

// print says what will be done, what it takes, and what is left out. A budget of
// 0 is no limit.
func (w *wholeBench) print(out io.Writer, dir string, budget time.Duration) {
	t := plainTable()
	t.AppendHeader(tableRow("run", "backends", "cells", "requests", "about", "RAM", "GPU memory", "weights to write"))
	pace := w.pace(dir)
	cells, requests, seconds, disk := 0, 0, 0.0, int64(0)
	ram, gpu := int64(0), int64(0)
	begun := false
	for _, r := range w.Runs {
		done := ""
		left := r.left(dir)
		if r.progressOf(dir) != nil {
			r.Disk = 0 // they are there
		}
		if left < 1 {
			begun = true
			done = fmt.Sprintf(" (%d left)", int(left*float64(r.Cells)+0.5))
		}
		t.AppendRow(tableRow(r.Name, strings.Join(r.Backends, " "), fmt.Sprint(r.Cells)+done, r.Requests, roughly(r.Seconds*left*pace), orDash(r.RAM), orDash(r.GPU), orDash(r.Disk)))
		cells, requests, seconds = cells+r.Cells, requests+r.Requests, seconds+r.Seconds*left*pace
		ram, gpu, disk = max(ram, r.RAM), max(gpu, r.GPU), disk+r.Disk
	}
	t.AppendFooter(tableRow("all", "", cells, requests, roughly(seconds), orDash(ram), orDash(gpu), orDash(disk)))
	t.Style().Format.Header, t.Style().Format.Footer = 0, 0
	fmt.Fprintf(out, "Plan of %s\n\n", dir)
	writeTable(out, t)
	how := "a rough guess from the bytes and operations of each token; it corrects itself by the cells that are done"
	if begun {
		how = "of what is left, by the cells that are done"
	}
	fmt.Fprintf(out, "\nTimes: %s. Memory is what is in use at once at most, estimated.\n", how)
	if budget > 0 {
		covers := "covers all"
		if seconds > budget.Seconds() {
			covers = "does not cover all, and what has no time is left out"
		}
		fmt.Fprintf(out, "Time budget: %s, which the runs share: by these times it %s.\n", budget, covers)
	}
	noted := false
	for _, r := range w.Runs {
		for _, text := range r.Notes {
			if !noted {
				fmt.Fprintln(out, "\nNotes:")
			}
			noted = true
			fmt.Fprintf(out, "  %s: %s\n", r.Name, text)
		}
	}
	if len(w.Omitted) > 0 {
		fmt.Fprintln(out, "\nLeft out:")
		for _, o := range w.Omitted {
			fmt.Fprintf(out, "  %s: %s\n", o.What, o.Why)
		}
	}
	fmt.Fprintln(out)
}

func orDash(bytes int64) string {
	if bytes <= 0 {
		return "—"
	}
	return gib(bytes)
}

// roughly prints seconds that are a guess.
func roughly(s float64) string {
	if s <= 0 {
		return "—"
	}
	return short(time.Duration(s * float64(time.Second)).Round(time.Second))
}

// run measures what is left, run by run, and writes the report however that
// ends.
func (w *wholeBench) run(c *cli.Context, known registry, dir string) error {
	budget := c.Duration("time-budget")
	omitted := slices.Clone(w.Omitted)
	code := exitOK
	before := w.remaining(dir)
	err := w.inTurn(dir, budget, time.Now, func(i int, budget time.Duration, again bool) (int, error) {
		r := w.Runs[i]
		heading := fmt.Sprintf("── %s, run %d of %d", r.Name, i+1, len(w.Runs))
		if again {
			heading += ", again with the time that is left"
		}
		fmt.Fprintf(c.App.ErrWriter, "%s\n\n", heading)
		args, err := r.command(dir, budget)
		if err != nil {
			return exitError, err
		}
		said := &lastSaid{to: c.App.ErrWriter}
		status := runWith(withStarts(c.Context, w.begun(dir)), io.Discard, said, append([]string{c.App.Name}, args...), known)
		fmt.Fprintln(c.App.ErrWriter)
		switch status {
		case exitOK:
		case exitCellsFailed:
			code = exitCellsFailed
		case exitInterrupted:
			code = exitInterrupted
		default:
			code = max(code, exitCellsFailed)
			omitted = append(omitted, report.Omission{What: r.Name, Why: "compare ended with status " + fmt.Sprint(status) + ": " + said.text()})
		}
		return status, nil
	})
	if err != nil {
		return err
	}
	why := "not begun: nativebench was stopped before"
	if budget > 0 && code != exitInterrupted {
		why = fmt.Sprintf("not begun: the time budget of %s was spent", budget)
	}
	if err := w.report(c, dir, w.unbegun(dir, omitted, why)); err != nil {
		return err
	}
	if code == exitInterrupted {
		fmt.Fprintf(c.App.ErrWriter, "stopped; go on with: nativebench bench-all --out %s\n", dir)
	}
	if budget > 0 && code == exitOK && before > 0 && w.remaining(dir) == before {
		fmt.Fprintf(c.App.ErrWriter, "nativebench: --time-budget %s: nothing was measured: there is no time for a single cell: give more\n", budget)
		code = exitError
	}
	if code != exitOK {
		return exitStatus(code)
	}
	return nil
}

// inTurn measures the runs that are not complete, one after the other, each for
// its part of the budget (0: no limit). What is left of that in the end goes to
// those that could do more with it.
func (w *wholeBench) inTurn(dir string, budget time.Duration, now func() time.Time, measure func(i int, budget time.Duration, again bool) (status int, err error)) error {
	end := now().Add(budget)
	good := map[int]bool{}
	for _, again := range []bool{false, true} {
		for i, r := range w.Runs {
			run := r.progressOf(dir)
			if run != nil && len(run.Remaining()) == 0 {
				continue
			}
			mine := time.Duration(0)
			if budget > 0 {
				rest := end.Sub(now())
				if rest <= 0 {
					return nil
				}
				if mine = w.share(dir, i, rest); again {
					mine = rest
				}
			}
			if again && (budget == 0 || !good[i] || !r.hasTime(run, mine)) {
				continue
			}
			status, err := measure(i, mine, again)
			if err != nil || status == exitInterrupted {
				return err
			}
			good[i] = status == exitOK
		}
	}
	return nil
}

// hasTime says that a run is worth beginning again: its shortest cell has time,
// and so has what starts before that if none was measured.
func (r wholeRun) hasTime(run *results.Run, rest time.Duration) bool {
	shortest := r.Least
	began := map[string]int64{}
	for _, e := range run.Events {
		switch e.State {
		case results.CellStarted:
			began[e.Cell] = e.T
		case results.CellDone:
			if at, known := began[e.Cell]; known {
				shortest = min(shortest, float64(e.T-at)/1e9)
			}
		}
	}
	return shortest <= rest.Seconds()
}

// remaining is how many cells have no result yet.
func (w *wholeBench) remaining(dir string) (n int) {
	for _, r := range w.Runs {
		if run := r.progressOf(dir); run != nil {
			n += len(run.Remaining())
		} else {
			n += r.Cells
		}
	}
	return n
}

// share is what a run may take of the time that is left for it and those after
// it: what one load takes at least, and of what is then left a part by what the
// whole run would take. Where there is not enough for that, those after it get
// less.
func (w *wholeBench) share(dir string, i int, rest time.Duration) time.Duration {
	least := func(r wholeRun) float64 {
		if r.left(dir) == 0 {
			return 0
		}
		return r.Least * spare / (spare - 1) // servers are started however little is left
	}
	over, weight := rest.Seconds(), 0.0
	for _, r := range w.Runs[i:] {
		over -= least(r)
		weight += r.Seconds * r.left(dir)
	}
	if weight <= 0 {
		return rest
	}
	r := w.Runs[i]
	mine := least(r) + max(0, over)*r.Seconds*r.left(dir)/weight
	return min(rest, time.Duration(mine*float64(time.Second)))
}

// begun are the runs that there are.
func (w *wholeBench) begun(dir string) (runs []*results.Run) {
	for _, r := range w.Runs {
		if run := r.progressOf(dir); run != nil {
			runs = append(runs, run)
		}
	}
	return runs
}

// unbegun adds the runs that have no directory to what was left out.
func (w *wholeBench) unbegun(dir string, omitted []report.Omission, why string) []report.Omission {
	omitted = slices.Clone(omitted)
	for _, r := range w.Runs {
		if r.progressOf(dir) == nil && !slices.ContainsFunc(omitted, func(o report.Omission) bool { return o.What == r.Name }) {
			omitted = append(omitted, report.Omission{What: r.Name, Why: why})
		}
	}
	return omitted
}

// command is how compare makes or completes the run.
func (r wholeRun) command(whole string, budget time.Duration) ([]string, error) {
	dir := r.dir(whole)
	var args []string
	switch _, err := os.Stat(filepath.Join(dir, "manifest.json")); {
	case err == nil:
		args = []string{"compare", "--resume", dir}
		if slices.Contains(r.Args, "--yes") {
			args = append(args, "--yes")
		}
	case errors.Is(err, fs.ErrNotExist):
		// One that was killed before it wrote what it measures has measured nothing.
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
		args = append([]string{"compare"}, r.Args...)
		args = append(args, "--out", dir)
	default:
		return nil, err
	}
	args = append(args, "--format", noReport)
	if budget > 0 {
		args = append(args, "--time-budget", max(time.Millisecond, budget.Round(time.Millisecond)).String()) // 0 is no limit
	}
	return args, nil
}

// lastSaid passes on what is written and keeps its last line.
type lastSaid struct {
	to   io.Writer
	tail []byte
}

func (l *lastSaid) Write(p []byte) (int, error) {
	l.tail = append(l.tail, p...)
	if over := len(l.tail) - 4096; over > 0 {
		l.tail = l.tail[over:]
	}
	return l.to.Write(p)
}

func (l *lastSaid) text() string {
	text := strings.TrimRight(string(l.tail), "\n")
	return strings.TrimPrefix(text[strings.LastIndexByte(text, '\n')+1:], "nativebench: ")
}

// report writes the report directory from the runs alone, and prints what it
// answers.
func (w *wholeBench) report(c *cli.Context, dir string, omitted []report.Omission) error {
	runs := w.begun(dir)
	if len(runs) == 0 {
		fmt.Fprintln(c.App.ErrWriter, "nothing was measured: there is no report")
		return nil
	}
	to := filepath.Join(dir, allReport)
	if err := os.MkdirAll(filepath.Join(to, allRuns), 0o755); err != nil {
		return fmt.Errorf("the report: %w", err)
	}
	write := func(name string, fill func(io.Writer) error) error {
		var b bytes.Buffer
		if err := fill(&b); err != nil {
			return fmt.Errorf("the report, %s: %w", name, err)
		}
		return writeWhole(filepath.Join(to, name), b.Bytes())
	}
	whole := report.Whole{Omitted: omitted, Command: w.Command}
	files := map[string]func(io.Writer) error{
		"report.md":    func(o io.Writer) error { return report.WholeMarkdown(o, runs, whole) },
		"answers.json": func(o io.Writer) error { return report.WholeJSON(o, runs, whole) },
		"report.csv":   func(o io.Writer) error { return report.CSV(o, runs, report.Options{}) },
		"report.json":  func(o io.Writer) error { return report.JSON(o, runs, report.Options{}) },
	}
	for _, run := range runs {
		files[filepath.Join(allRuns, filepath.Base(run.Dir)+".md")] = func(o io.Writer) error {
			return report.Markdown(o, []*results.Run{run}, report.Options{})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := write(name, files[name]); err != nil {
			return err
		}
	}
	if err := report.WholeTerminal(c.App.Writer, runs, whole, report.Options{}); err != nil {
		return err
	}
	fmt.Fprintf(c.App.ErrWriter, "\nreport directory: %s (report.md; report.csv and report.json with every number; answers.json; %s/*.md in full)\n", to, allRuns)
	return nil
}
