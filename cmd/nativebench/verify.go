package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/verify"
	"github.com/nativebench/nativebench/native"
)

const (
	verifyPrompts   = 8  // default of verify
	verifyMaxTokens = 32 // default of verify
	verifySeeds     = 2000
)

// verifyPlanFlags are the flags of compare that verify takes, too.
var verifyPlanFlags = []string{
	"task", "max-tokens", "endpoint", "served-model", "api-key-env", "launch", "route", "insecure", "request-timeout", "ready-timeout",
	"threads", "batch-threads", "ctx", "gpu-layers", "flash-attn", "cache-type",
}

func verifyCommand(known registry) *cli.Command {
	d := plan.Default()
	d.Modes, d.Concurrency, d.Repeats, d.Requests, d.Warmup = []plan.Mode{plan.Sync}, []int{1}, 1, 1, 0
	d.MaxTokens = verifyMaxTokens
	flags := []cli.Flag{
		&cli.StringFlag{Name: "model", Category: flagsWhat, Value: d.Models[0], Usage: "`MODEL`: " + modelKeys()},
		&cli.StringSliceFlag{Name: "backends", Aliases: []string{"backend"}, Category: flagsWhat, Value: cli.NewStringSlice(d.Backends...), Usage: "`NAME,…`: the reference is native if it is there, else the first"},
		&cli.IntFlag{Name: "prompts", Category: flagsWhat, Value: verifyPrompts, Usage: "prompts that all backends are asked, taken from the tasks in turn"},
		&cli.BoolFlag{Name: "sampled", Category: flagsWhat, Usage: "compare the first tokens of many seeds instead, by a chi-square test"},
		&cli.IntFlag{Name: "seeds", Category: flagsWhat, Value: verifySeeds, Usage: "of --sampled: how many"},
		&cli.Float64Flag{Name: "temperature", Category: flagsWhat, Value: 0.8, Usage: "of --sampled"},
		&cli.Float64Flag{Name: "top-p", Category: flagsWhat, Value: 0.95, Usage: "of --sampled"},
	}
	for _, f := range planFlags() {
		if slices.Contains(verifyPlanFlags, f.Names()[0]) {
			if of, ok := f.(*cli.IntFlag); ok && of.Name == "max-tokens" {
				of.Value, of.Usage = verifyMaxTokens, "tokens of each answer"
			}
			flags = append(flags, f)
		}
	}
	flags = append(flags, weightFlags()...)
	flags = append(flags, answerFlags()...)
	return &cli.Command{
		Name:  "verify",
		Usage: "check that backends run the same model: same prompt tokens, same greedy answers",
		Description: "Examples:\n" +
			"   nativebench verify --model gpt2 --backends native,llama-server,transformers\n" +
			"   nativebench verify --endpoint vllm=http://host:8000 --prompts 20 --max-tokens 50\n" +
			"   nativebench verify --sampled --backends native,transformers\n\n" +
			"Every backend is asked the same prompts, greedily. Each is then set against the\n" +
			"reference: are the prompts the same tokens, where do the answers first differ, and\n" +
			"what do the logits of native say there? The verdict of a pair is one of\n" +
			"   identical            the same tokens throughout\n" +
			"   numerically close    every first difference is a tie within the error of the types\n" +
			"   different            with the likely cause: BOS, template, context, weights, dtype\n" +
			"   not verified         one of the two did not answer\n\n" +
			"With --sampled, first tokens are drawn with many seeds at one temperature and top-p:\n" +
			"p is the chance of counts at least as unlike if both draw from one distribution.\n\n" +
			"Exit status: 0 all identical or close; 3 a pair is different or not verified.",
		Flags:  flags,
		Action: func(c *cli.Context) error { return verifyAction(c, known, d) },
	}
}

func verifyAction(c *cli.Context, known registry, base plan.Plan) error {
	if err := noArguments(c); err != nil {
		return err
	}
	for _, of := range []struct {
		flag  string
		least int
	}{{"prompts", 1}, {"seeds", 100}, {"max-tokens", 1}} {
		if n := c.Int(of.flag); n < of.least {
			return refuse("--%s is %d; it must be at least %d", of.flag, n, of.least)
		}
	}
	if t, p := c.Float64("temperature"), c.Float64("top-p"); !(t > 0) || !(p > 0 && p <= 1) {
		return refuse("--temperature %g --top-p %g: to draw, a temperature above 0 and a top-p above 0 and at most 1 are needed", t, p)
	}
	if f := c.String("format"); f != "terminal" && f != "json" {
		return refuse("--format %s: choose terminal or json", f)
	}
	s := newSetup(c, known, base)
	s.plan.Models = []string{c.String("model")}
	s.inTurn = true
	s.plan.PromptFile = "" // --prompts is a number here
	s.out = filepath.Join(os.TempDir(), "nativebench-verify-"+runID())
	if len(s.plan.Backends) < 2 {
		return refuse("--backends %s: to verify is to compare: name at least two", strings.Join(s.plan.Backends, ","))
	}
	if err := s.check(); err != nil {
		return err
	}
	stop := listen(c.Context, c.App.ErrWriter)
	defer stop.close()
	if err := s.readyToRun(stop, c.App.ErrWriter); err != nil {
		if stop.stopped() {
			return exitStatus(exitInterrupted)
		}
		return err
	}
	ctx, cancel := stop.either()
	defer cancel()
	how := questions{MaxTokens: c.Int("max-tokens"), Timeout: s.plan.RequestTimeout}
	if how.List = s.questions(s.plan.Models[0], c.Int("prompts")); len(how.List) == 0 {
		return refuse("--task %s: there are no prompts", strings.Join(s.plan.Tasks, ","))
	}
	if c.Bool("sampled") {
		// The shortest of them: its prefill is paid for every seed.
		how.List, how.MaxTokens = []verify.Question{slices.MinFunc(how.List, func(a, b verify.Question) int { return len(a.Prompt) - len(b.Prompt) })}, 1
		how.Samples, how.Temperature, how.TopP = c.Int("seeds"), c.Float64("temperature"), c.Float64("top-p")
	}
	got, logs, err := s.askBackends(ctx, how, newLiveLine(c.App.ErrWriter))
	if err != nil {
		if stop.stopped() {
			return exitStatus(exitInterrupted)
		}
		return err
	}
	defer logs.done()
	var bad bool
	if how.Samples > 0 {
		bad, err = s.reportSampled(c, how, got)
	} else {
		bad, err = s.reportPairs(c, how, got)
	}
	if err != nil {
		return err
	}
	if bad {
		logs.keep = true
		fmt.Fprintf(c.App.ErrWriter, "\nlogs of the servers: %s\n", logs.dir)
		return exitStatus(exitCellsFailed)
	}
	return nil
}

// questions are n prompts of the run's own, taken from its tasks in turn.
func (s *setup) questions(modelKey string, n int) (list []verify.Question) {
	var books [][]verify.Question
	var seen []promptKey
	for _, c := range s.cells {
		k := promptKey{c.Model, c.Task, c.Prompt}
		if c.Model != modelKey || slices.Contains(seen, k) {
			continue
		}
		seen = append(seen, k)
		var book []verify.Question
		for _, p := range s.prompts[k] {
			book = append(book, verify.Question{ID: p.ID, Prompt: p.Text, Message: p.Message})
		}
		books = append(books, book)
	}
	for i := 0; len(list) < n; i++ {
		before := len(list)
		for _, book := range books {
			if i < len(book) && len(list) < n {
				list = append(list, book[i])
			}
		}
		if len(list) == before {
			break
		}
	}
	return list
}

// logDir is a directory of logs that is removed unless it is wanted.
type logDir struct {
	dir  string
	keep bool
}

func (l *logDir) done() {
	if !l.keep {
		os.RemoveAll(l.dir)
	}
}

// referenceFirst puts the reference before the others: native if it is there.
func referenceFirst(backends []string) []string {
	list := slices.Clone(backends)
	if i := slices.Index(list, "native"); i > 0 {
		list = slices.Insert(slices.Delete(list, i, i+1), 0, "native")
	}
	return list
}

// askBackends asks all backends of the plan, the reference first, one after the
// other. One that cannot be asked has a side that says so.
func (s *setup) askBackends(ctx context.Context, how questions, show *liveLine) (list []answers, logs *logDir, err error) {
	defer show.erase()
	if err := os.Mkdir(s.out, 0o755); err != nil {
		return nil, nil, fmt.Errorf("the logs of the servers: %w", err)
	}
	made := &logDir{dir: s.out}
	defer func() {
		if err != nil {
			made.done()
		}
	}()
	k, closeLog, err := newAsker(filepath.Join(s.out, "ask.log"))
	if err != nil {
		return nil, nil, err
	}
	defer closeLog()
	model := s.plan.Models[0]
	ready := newSeats(func(name, modelKey string) place {
		p := s.place(name, modelKey)
		p.log = filepath.Join(s.out, name+"."+modelKey+".log")
		return p
	})
	defer func() {
		if stopErr := ready.close(); stopErr != nil {
			show.line("warning: " + stopErr.Error())
		}
	}()
	for _, name := range referenceFirst(s.plan.Backends) {
		b, err := s.known.find(name)
		if err != nil {
			return nil, nil, usageError{err}
		}
		show.draw("making " + name + " ready")
		var a answers
		seat, _, _, err := ready.get(ctx, b, model)
		if err == nil {
			show.erase()
			show.draw("asking " + name)
			a, err = k.ask(ctx, b, seat.seat, how)
		}
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if a.Side.Backend = name; err != nil {
			a.Side.Failed = oneLine(err)
		}
		list = append(list, a)
		// One at a time: what is loaded twice may not fit.
		if err := ready.drop(ctx, name); err != nil {
			return nil, nil, err
		}
	}
	return list, made, nil
}

// reportPairs sets every backend against the first and prints what came of it.
// bad: not all are one model.
func (s *setup) reportPairs(c *cli.Context, how questions, got []answers) (bad bool, err error) {
	piece, closeVocab := s.pieces(s.plan.Models[0])
	defer closeVocab()
	var list []verify.Result
	for _, other := range got[1:] {
		r := verify.Pair(got[0].Side, other.Side, how.List, piece)
		r.Model = s.plan.Models[0]
		bad = bad || !r.Verdict.OK()
		list = append(list, r)
	}
	if c.String("format") == "json" {
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return bad, enc.Encode(map[string]any{"model": s.plan.Models[0], "max_tokens": how.MaxTokens, "questions": how.List, "pairs": list})
	}
	writePairs(c.App.Writer, s.plan.Models[0], how, list)
	return bad, nil
}

// pieces looks tokens of a model up; its vocabulary is opened when the first is.
// Without one every text is empty.
func (s *setup) pieces(modelKey string) (piece func(int32) string, done func()) {
	var vocab *native.Vocab
	tried := false
	piece = func(id int32) string {
		if m := s.models[modelKey]; !tried && m != nil {
			if v, err := native.OpenVocab(s.engineDir, m.file.Path); err == nil {
				vocab = v
			}
		}
		if tried = true; vocab == nil {
			return ""
		}
		text, _ := vocab.Piece(id) // an id that it does not have has no text
		return text
	}
	return piece, func() {
		if vocab != nil {
			vocab.Close()
		}
	}
}

func writePairs(w io.Writer, model string, how questions, list []verify.Result) {
	fmt.Fprintf(w, "%s: %d prompts, greedy, at most %d tokens each\n\n", model, len(how.List), how.MaxTokens)
	for _, r := range list {
		fmt.Fprintf(w, "%s and %s: %s\n", r.Backend, r.Reference, strings.ToUpper(string(r.Verdict)))
		row := func(name, format string, args ...any) {
			fmt.Fprintf(w, "  %-8s %s\n", name, fmt.Sprintf(format, args...))
		}
		if r.Why != "" {
			row("why", "%s", r.Why)
		}
		if r.Prompts > 0 {
			row("prompts", "%s", promptsLine(r))
			row("answers", "%d of %d equal; %d tokens before any difference; compared by %s", r.AnswersEqual, r.Prompts, r.Tokens, answersBy(r))
		}
		if len(r.Differ) > 0 {
			writeDivergences(w, r)
		}
		fmt.Fprintln(w)
	}
}

func promptsLine(r verify.Result) string {
	switch r.PromptsBy {
	case verify.ByIDs:
		return fmt.Sprintf("%d of %d have the same token ids", r.PromptsEqual, r.Prompts)
	case verify.ByCounts:
		return fmt.Sprintf("%d of %d have as many tokens (%s does not tell their ids)", r.PromptsEqual, r.Prompts, r.Backend)
	}
	return fmt.Sprintf("not compared: %s tells neither ids nor numbers of prompt tokens", r.Backend)
}

func answersBy(r verify.Result) string {
	if r.AnswersBy == verify.ByText {
		return "text, cut into the reference's tokens: no token ids were told"
	}
	return "token ids"
}

func writeDivergences(w io.Writer, r verify.Result) {
	t := plainTable()
	t.AppendHeader(table.Row{"  prompt", "token", r.Reference, r.Backend, "rank", "top two", "margin", "gap", "of spread", ""})
	for _, d := range r.Differ {
		if !d.Judged {
			t.AppendRow(table.Row{"  " + d.Prompt, d.Position, choiceText(d.Reference), choiceText(d.Other), "", "", "", "", "", "no logits to judge by"})
			continue
		}
		rank, least := fmt.Sprint(d.Other.Rank), ""
		if d.AtLeast {
			least = "≥ "
		}
		if d.Other.Rank == 0 {
			rank = fmt.Sprintf("> %d", verify.TopTokens)
		}
		tie := "no tie"
		if d.Tie {
			tie = "tie"
		}
		t.AppendRow(table.Row{
			"  " + d.Prompt, d.Position, choiceText(d.Reference), choiceText(d.Other), rank,
			fmt.Sprintf("%q %q", d.Top[0].Text, d.Top[1].Text), fmt.Sprintf("%.4f", d.Margin),
			fmt.Sprintf("%s%.4f", least, d.Gap), fmt.Sprintf("%s%.4f", least, d.Gap/d.Spread), tie,
		})
	}
	writeTable(w, t)
	if slices.ContainsFunc(r.Differ, func(d verify.Divergence) bool { return d.Judged }) {
		fmt.Fprintf(w, "  Logits of %s where the two first differ: margin between its two largest, gap from the largest to the\n"+
			"  lower of the two choices. Ties end at %.2g of the spread (largest less mean), twice the error of %s.\n", r.Reference, r.Tolerance, r.Type)
	}
}

func choiceText(c verify.Choice) string {
	switch {
	case c.End:
		return "(end)"
	case c.Text == "" && c.ID >= 0:
		return fmt.Sprintf("id %d", c.ID)
	case c.ID >= 0:
		return fmt.Sprintf("%q (%d)", c.Text, c.ID)
	}
	return fmt.Sprintf("%q", c.Text)
}

// falseAlarm is how unlikely counts must be under one distribution to be called
// different.
const falseAlarm = 0.001

func (s *setup) reportSampled(c *cli.Context, how questions, got []answers) (bad bool, err error) {
	var list []verify.Sampled
	for _, other := range got[1:] {
		r := verify.PairSampled(got[0].Side, other.Side, got[0].Counts, other.Counts, falseAlarm)
		bad = bad || !r.Verdict.OK()
		list = append(list, r)
	}
	if c.String("format") == "json" {
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return bad, enc.Encode(map[string]any{
			"model": s.plan.Models[0], "seeds": how.Samples, "temperature": how.Temperature, "top_p": how.TopP, "question": how.List[0], "pairs": list,
		})
	}
	w := c.App.Writer
	fmt.Fprintf(w, "%s: first token after prompt %s, %d seeds at temperature %g, top-p %g\n\n", s.plan.Models[0], how.List[0].ID, how.Samples, how.Temperature, how.TopP)
	for _, r := range list {
		fmt.Fprintf(w, "%s and %s: %s\n", r.Backend, r.Reference, strings.ToUpper(cmp.Or(r.Says, string(r.Verdict))))
		fmt.Fprintf(w, "  %s\n", r.Why)
	}
	return bad, nil
}

// firstTokens asks one question with many seeds and counts the first tokens.
func firstTokens(ctx context.Context, b bench.Backend, q questions) (verify.Counts, error) {
	s, err := b.NewSession(limitsOf(q))
	if err != nil {
		return nil, err
	}
	defer s.Close()
	counts := verify.Counts{}
	for seed := range q.Samples {
		req := sampledRequest(q, uint64(seed+1))
		tr, err := generateOnce(ctx, s, req, q.Timeout)
		if err != nil {
			return nil, fmt.Errorf("seed %d: %w", seed+1, err)
		}
		if len(tr.Tokens) != 1 {
			return nil, errNoTokens
		}
		counts[tr.Tokens[0]]++
	}
	return counts, nil
}

var errNoTokens = errors.New("it does not tell the ids of its tokens, which are compared: choose other --backends")
