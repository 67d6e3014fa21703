package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
)

// Child is a process to run one cell in, and what the parent does with what
// it says. The functions are called from one goroutine; nil ones are skipped.
type Child struct {
	Command []string // argv of the process, which must call Serve on descriptors 0, 3 and 4
	Env     []string // nil: the parent's
	Spec    Spec
	Log     io.Writer // everything it prints; nil: dropped

	// Limit is when a process that has not ended by itself is killed; 0: never.
	// It should lie beyond the cell's own time limit.
	Limit time.Duration
	// Grace is how long a process may take to end after it was told to stop at
	// once; 0: 5 s. Ending is the same after its last message; 0: Grace.
	Grace, Ending time.Duration

	Started func(pid int)
	Loading func(share float64) // of the model, 0..1
	// Hold is called at a mark, while the child waits for it to return: what the
	// child holds on a GPU stands still.
	Hold func(mark string)
	Info func(bench.Info)
	// Record keeps a finished request. Its error ends the child: what cannot
	// be kept need not be measured.
	Record func(*results.Record) error
}

// Supervise runs a cell in a child process and returns how that ended. Nothing
// that happens in the child, a crash, a kill, a hang, a message cut in half, is
// an error here: it is the cell's result. The error is of Child.Record.
//
// The child is in a process group of its own, so that Ctrl-C reaches it only
// through this function: when drain is closed it is sent SIGINT (let requests
// in flight end), when ctx is done SIGTERM (stop now) and after Grace SIGKILL.
// It is killed with this process, however this process ends.
func Supervise(ctx context.Context, drain <-chan struct{}, c Child) (results.CellEvent, error) {
	ev := results.CellEvent{Cell: c.Spec.Job.ID, Attempt: c.Spec.Job.Attempt, State: results.CellFailed, Class: string(bench.Crash)}
	if c.Grace == 0 {
		c.Grace = 5 * time.Second
	}
	if c.Ending == 0 {
		c.Ending = c.Grace
	}
	p, err := start(c)
	if err != nil {
		ev.T, ev.Class = bench.Now(), string(bench.Internal)
		ev.Reason = fmt.Sprintf("the process of the cell could not be started: %v", err)
		return ev, nil
	}
	if c.Started != nil {
		c.Started(p.cmd.Process.Pid)
	}
	finished := make(chan struct{}) // the child has said its last message
	go p.shepherd(ctx, drain, finished, c)

	var done *results.CellEvent
	var window [2]int64
	notes, err := receive(p.messages, func(m message) error {
		switch {
		case m.Load != nil && c.Loading != nil:
			c.Loading(*m.Load)
		case m.Hold != "":
			if c.Hold != nil {
				c.Hold(m.Hold)
			}
			p.answers.Write([]byte{1}) // a child that is gone needs none
		case m.Info != nil && c.Info != nil:
			c.Info(*m.Info)
		case m.Request != nil:
			if r := m.Request; !r.Warmup && r.Start > 0 {
				if window[0] == 0 || r.Start < window[0] {
					window[0] = r.Start
				}
				window[1] = max(window[1], r.End)
			}
			if c.Record != nil {
				return c.Record(m.Request)
			}
		case m.Done != nil && done == nil:
			done = m.Done
			close(finished)
		}
		return nil
	})
	if err != nil {
		p.kill(byFault)
	}
	<-p.gone
	p.messages.Close()
	p.answers.Close()

	how := ending(p.cmd.ProcessState)
	switch {
	case err != nil:
		ev.Class, ev.Reason = string(bench.Internal), fmt.Sprintf("what the cell measured could not be kept: %v", err)
	case done != nil:
		ev = *done
		if how != "" {
			ev.Warnings = append(ev.Warnings, "after its last request the process of the cell ended badly: "+how)
		}
	case p.killed.Load() == byLimit:
		ev.Class = string(bench.Timeout)
		ev.Reason = fmt.Sprintf("the process of the cell hung: it had not ended after %v, past its own time limit, and was killed", c.Limit)
	case ctx.Err() != nil, p.drained.Load() && signalled(p.cmd.ProcessState, syscall.SIGINT): // it had not come to listening yet
		ev.State, ev.Class, ev.Reason = results.CellInterrupted, string(bench.Cancelled), "stopped by the user"
	case how == "":
		ev.Reason = "the process of the cell ended without a word about its result"
	default:
		ev.Reason = "the process of the cell crashed: " + how
		if cause := p.tail.cause(); cause != "" {
			ev.Reason = fmt.Sprintf("the process of the cell crashed: %s (%s)", cause, how)
		}
	}
	ev.T = bench.Now()
	if ev.WindowNS == [2]int64{} && window[1] > 0 {
		ev.WindowNS = window
	}
	ev.Warnings = append(ev.Warnings, notes...)
	if ev.State == results.CellFailed && len(ev.Stderr) == 0 {
		ev.Stderr = p.tail.lines()
	}
	return ev, err
}

// process is a running child.
type process struct {
	cmd      *exec.Cmd
	messages *os.File
	answers  *os.File
	tail     *tail
	gone     chan struct{} // closed when it has been waited for
	killed   atomic.Int32  // why this process killed it: by…
	drained  atomic.Bool   // it was sent SIGINT
}

const (
	byStop  = 1 + iota // the user's second Ctrl-C
	byLimit            // it hung
	byExit             // it had said its last message and did not end
	byFault            // its messages cannot be used
)

func start(c Child) (*process, error) {
	spec, err := json.Marshal(c.Spec)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	hr, hw, err := os.Pipe()
	if err != nil {
		r.Close()
		w.Close()
		return nil, err
	}
	p := &process{messages: r, answers: hw, tail: &tail{}, gone: make(chan struct{})}
	p.cmd = exec.Command(c.Command[0], c.Command[1:]...)
	p.cmd.Env = c.Env
	p.cmd.Stdin = bytes.NewReader(spec)
	p.cmd.ExtraFiles = []*os.File{w, hr}
	p.cmd.Stderr = p.tail
	if c.Log != nil {
		p.cmd.Stderr = io.MultiWriter(c.Log, p.tail)
	}
	p.cmd.Stdout = p.cmd.Stderr
	p.cmd.WaitDelay = c.Grace // if a grandchild holds its output open
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	// The kernel sends Pdeathsig when the starting *thread* ends, which the Go
	// runtime may do at any time: this goroutine keeps its thread until the
	// child is gone (golang.org/issue/27505).
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		w.Close()
		hr.Close()
		started <- err
		if err == nil {
			p.cmd.Wait() // its error says less than ProcessState
			close(p.gone)
		}
	}()
	if err := <-started; err != nil {
		r.Close()
		hw.Close()
		return nil, err
	}
	return p, nil
}

// shepherd passes stops on to the child and ends it when it does not end by
// itself.
func (p *process) shepherd(ctx context.Context, drain, finished <-chan struct{}, c Child) {
	var limit, patience <-chan time.Time
	if c.Limit > 0 {
		t := time.NewTimer(c.Limit)
		defer t.Stop()
		limit = t.C
	}
	var why int32
	stop := ctx.Done()
	wait := func(because int32, d time.Duration) {
		if patience == nil || because == byStop { // told to stop, it has no more time than that
			why, patience = because, time.After(d)
		}
	}
	for {
		select {
		case <-p.gone:
			return
		case <-drain:
			drain = nil
			p.drained.Store(true)
			p.cmd.Process.Signal(syscall.SIGINT)
		case <-stop:
			stop = nil
			p.cmd.Process.Signal(syscall.SIGTERM)
			wait(byStop, c.Grace)
		case <-finished:
			finished = nil
			wait(byExit, c.Ending)
		case <-limit:
			limit = nil
			p.kill(byLimit)
		case <-patience:
			p.kill(why)
		}
	}
}

// kill ends the child and all that it started. The first reason stays.
func (p *process) kill(why int32) {
	p.killed.CompareAndSwap(0, why)
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
}

// ending says how a process ended if not with status 0.
func ending(s *os.ProcessState) string {
	if s == nil || s.Success() {
		return ""
	}
	ws, ok := s.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		return fmt.Sprintf("exit status %d", s.ExitCode())
	}
	text := "killed by " + signalName(ws.Signal())
	if ws.Signal() == syscall.SIGKILL {
		text += " (if nobody sent it, the kernel did for want of memory: see dmesg)"
	}
	return text
}

func signalled(s *os.ProcessState, by syscall.Signal) bool {
	ws, ok := s.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == by
}

func signalName(s syscall.Signal) string {
	names := map[syscall.Signal]string{
		syscall.SIGSEGV: "SIGSEGV", syscall.SIGABRT: "SIGABRT", syscall.SIGKILL: "SIGKILL", syscall.SIGBUS: "SIGBUS",
		syscall.SIGFPE: "SIGFPE", syscall.SIGILL: "SIGILL", syscall.SIGTERM: "SIGTERM", syscall.SIGINT: "SIGINT", syscall.SIGQUIT: "SIGQUIT",
	}
	if n, ok := names[s]; ok {
		return n
	}
	return s.String()
}

var errNoMessages = errors.New("descriptors 3 and 4 are not open: this command is started by compare and run, not by hand")

// Messages opens the descriptors that Supervise gave this process: for its
// messages, and for what Serve takes as held.
func Messages() (out, held *os.File, err error) {
	out, held = os.NewFile(3, "messages"), os.NewFile(4, "answers")
	for i, f := range []*os.File{out, held} {
		if f == nil {
			return nil, nil, errNoMessages
		}
		st, err := f.Stat()
		if err != nil || st.Mode()&os.ModeNamedPipe == 0 {
			return nil, nil, errNoMessages
		}
		syscall.CloseOnExec(3 + i)
	}
	return out, held, nil
}
