package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/runner"
	"github.com/nativebench/nativebench/internal/verify"
	"github.com/nativebench/nativebench/native"
)

// questions is what the process of ask reads: a backend, and what to ask it,
// greedily.
type questions struct {
	Backend   childSpec         `json:"backend"`
	List      []verify.Question `json:"questions"`
	MaxTokens int               `json:"max_tokens"`
	Timeout   time.Duration     `json:"timeout_ns"` // of one answer
	// Samples, if not 0, asks for the first tokens of so many seeds instead; see
	// firstTokens.
	Samples     int     `json:"samples,omitempty"`
	Temperature float64 `json:"temperature,omitempty"`
	TopP        float64 `json:"top_p,omitempty"`
}

// answers is what it writes.
type answers struct {
	Side   verify.Side   `json:"side"`
	Counts verify.Counts `json:"counts,omitempty"`
}

// askCommand is the process that asks one backend what verify wants to know: an
// engine that dies takes nothing else with it, and gives its memory back.
func askCommand(known registry) *cli.Command {
	return &cli.Command{
		Name:   "ask",
		Usage:  "ask one backend; started by verify and compare, not by hand",
		Hidden: true,
		Action: func(c *cli.Context) error {
			var q questions
			if err := json.NewDecoder(c.App.Reader).Decode(&q); err != nil {
				return refuse("ask: its questions on standard input could not be read (this command is started by verify and compare): %w", err)
			}
			b, err := known.find(q.Backend.Backend)
			if err != nil {
				return usageError{err}
			}
			opened, err := b.open(c.Context, q.Backend.With, runner.Opening{Loading: func(float64) {}, Hold: func(string) {}})
			if err != nil {
				return err
			}
			defer opened.Close()
			var a answers
			if q.Samples > 0 {
				a.Counts, err = firstTokens(c.Context, opened, q)
			} else {
				a.Side, err = askAll(c.Context, opened, q)
			}
			if err != nil {
				return err
			}
			return json.NewEncoder(c.App.Writer).Encode(a)
		},
	}
}

// askAll asks every question in turn. A question that fails is an answer that
// says so.
func askAll(ctx context.Context, b bench.Backend, q questions) (verify.Side, error) {
	info := b.Info()
	side := verify.Side{Backend: info.Backend}
	if info.DType != "" {
		side.Types = []string{info.DType}
	}
	s, err := b.NewSession(limitsOf(q))
	if err != nil {
		return side, err
	}
	for _, one := range q.List {
		side.Answers = append(side.Answers, askOne(ctx, s, one, q))
	}
	if err := s.Close(); err != nil {
		return side, err
	}
	return side, addFacts(ctx, b, q.List, side.Answers)
}

func limitsOf(q questions) bench.Limits {
	longest := 0
	for _, one := range q.List {
		longest = max(longest, len(one.Prompt), len(one.Message))
	}
	return bench.Limits{PromptBytes: longest, PromptTokens: longest + 1, OutputTokens: q.MaxTokens}
}

// askOne asks for a whole answer at once: llama-server tells ids only then.
func askOne(ctx context.Context, s bench.Session, one verify.Question, q questions) verify.Answer {
	req := &bench.Request{Prompt: one.Prompt, Message: one.Message, Sampling: bench.Sampling{TopP: 1, MaxTokens: q.MaxTokens, Seed: 1}}
	tr, err := generateOnce(ctx, s, req, q.Timeout)
	if err != nil {
		return verify.Answer{Failed: oneLine(err)}
	}
	return verify.Answer{
		PromptIDs: slices.Clone(tr.PromptIDs), PromptTokens: tr.PromptTokens,
		IDs: slices.Clone(tr.Tokens), Text: string(tr.Text), Stopped: tr.Finish == bench.FinishStop,
	}
}

// generateOnce answers one request. An answer without text is one, too: its
// tokens may have none.
func generateOnce(ctx context.Context, s bench.Session, req *bench.Request, timeout time.Duration) (*bench.Trace, error) {
	if err := s.Prepare(req); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tr := bench.NewTrace(req.Sampling.MaxTokens)
	if err := s.Generate(limited, tr); err != nil && bench.ClassOf(err) != bench.Empty {
		return nil, err
	}
	return tr, nil
}

// addFacts adds to answers what a backend tells beside the requests: the ids of
// its prompts, and the engine its logits.
func addFacts(ctx context.Context, b bench.Backend, list []verify.Question, answers []verify.Answer) error {
	engine, ok := b.(*native.Engine)
	var vocab *native.Vocab
	if ok {
		var err error
		if vocab, err = engine.Vocab(); err != nil {
			return err
		}
		defer vocab.Close()
	}
	for i := range answers {
		a := &answers[i]
		if a.Failed != "" {
			continue
		}
		var err error
		if t, ok := b.(interface {
			Tokenize(ctx context.Context, prompt string) ([]int32, error)
		}); ok && len(a.PromptIDs) == 0 {
			a.PromptIDs, err = t.Tokenize(ctx, list[i].Prompt)
		} else if engine != nil && len(a.IDs) > 0 {
			err = engineFacts(engine, vocab, list[i], a)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func engineFacts(e *native.Engine, vocab *native.Vocab, one verify.Question, a *verify.Answer) (err error) {
	if a.PromptIDs, err = e.Tokenize(one.Prompt); err != nil {
		return err
	}
	view := &verify.Engine{BOS: -1}
	plain, err := vocab.Tokenize(one.Prompt)
	if err != nil {
		return err
	}
	if len(plain) < len(a.PromptIDs) {
		view.BOS = a.PromptIDs[0]
	}
	if view.Message, err = vocab.Tokenize(one.Message); err != nil {
		return err
	}
	piece := func(id int32) string {
		text, _ := vocab.Piece(id) // every id of a row is in the vocabulary
		return text
	}
	for _, id := range a.IDs {
		view.Pieces = append(view.Pieces, piece(id))
	}
	all := slices.Concat(a.PromptIDs, a.IDs)
	rows, err := e.Logits(all[:len(all)-1], len(a.IDs))
	if err != nil {
		return err
	}
	for _, row := range rows {
		view.Rows = append(view.Rows, verify.NewRow(row, piece))
	}
	a.Engine = view
	return nil
}

// asker starts the processes that ask, and keeps what they print.
type asker struct {
	command []string // argv of the process
	env     []string // nil: this process's
	log     io.Writer
}

// ask asks a backend that is ready.
func (k asker) ask(ctx context.Context, b backend, s *seat, q questions) (answers, error) {
	spec := s.spec
	if server, ok := spec.(serverSpec); ok && b.server != nil {
		server.TokenIDs = b.server.Tokens
		spec = server
	}
	with, err := json.Marshal(spec)
	if err != nil {
		return answers{}, err
	}
	q.Backend = childSpec{Backend: b.name, With: with}
	in, err := json.Marshal(q)
	if err != nil {
		return answers{}, err
	}
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, k.command[0], k.command[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = k.env, bytes.NewReader(in), &out, io.MultiWriter(k.log, &said)
	// A group of its own, so that Ctrl-C reaches it through ctx alone; and an end
	// with this process, which the kernel ties to the thread that starts it
	// (golang.org/issue/27505).
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	ended := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		ended <- cmd.Run()
	}()
	if err := <-ended; err != nil {
		if ctx.Err() != nil {
			return answers{}, context.Cause(ctx)
		}
		return answers{}, fmt.Errorf("its process ended with %w: %s", err, lastLine(said.String()))
	}
	var a answers
	if err := json.Unmarshal(out.Bytes(), &a); err != nil {
		return answers{}, fmt.Errorf("what its process said could not be read: %w", err)
	}
	a.Side.Backend = b.name
	if set := s.entry.Settings; set != nil && len(a.Side.Types) > 0 {
		a.Side.Types = append(a.Side.Types, strings.ToUpper(set.CacheType)+" KV")
	} else if e, ok := s.spec.(native.Config); ok && len(a.Side.Types) > 0 {
		a.Side.Types = append(a.Side.Types, strings.ToUpper(e.CacheType)+" KV")
	}
	if server, ok := s.spec.(serverSpec); ok {
		a.Side.Chat = server.Chat
	}
	return a, nil
}

// lastLine is what a process said last: the first line of a crash, else the last
// line, without the name that this program puts before its errors.
func lastLine(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
	if len(lines) == 0 {
		return "it said nothing"
	}
	for _, line := range lines {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") || strings.HasPrefix(line, "SIG") {
			return line
		}
	}
	return strings.TrimPrefix(lines[len(lines)-1], "nativebench: ")
}

// newAsker asks in processes of this program; what they print goes into a file.
func newAsker(logPath string) (asker, func() error, error) {
	command, err := thisProgram("ask")
	if err != nil {
		return asker{}, nil, err
	}
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return asker{}, nil, fmt.Errorf("the log of what is asked: %w", err)
	}
	return asker{command: command, log: log}, log.Close, nil
}

func sampledRequest(q questions, seed uint64) *bench.Request {
	return &bench.Request{Prompt: q.List[0].Prompt, Message: q.List[0].Message, Sampling: bench.Sampling{
		Temperature: q.Temperature, TopP: q.TopP, MaxTokens: 1, Seed: seed,
	}}
}
