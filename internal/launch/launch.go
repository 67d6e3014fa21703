// Package launch starts a server, waits until it is ready, knows its processes
// and makes sure that none is left: not after Stop, and not when this process
// is killed.
package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Spec says what to start.
type Spec struct {
	Name string // for messages
	// Argv returns the command line for a port; the first element is the
	// program's path.
	Argv func(port int) ([]string, error)
	Env  []string // the whole environment; nil: that of this process
	Dir  string   // working directory; empty: that of this process

	LogPath      string        // receives stdout and stderr, appended
	Host         string        // where it will listen; empty: 127.0.0.1
	Port         int           // 0: a free one
	Health       string        // URL path that answers 200 once it is ready
	ReadyTimeout time.Duration // of Health, Ready and Pid together; 0: 5 minutes
	// Ready, if not nil, is asked once Health has answered, at the server's
	// base URL: a server may answer before it can do its work. Its error is
	// Start's.
	Ready func(ctx context.Context, endpoint string) error
	// Pid, if not nil, tells once the server is ready which process does its
	// work, where that is no descendant of the one started (a container's).
	Pid func(ctx context.Context) (int, error)
	// Remove, if not empty, is a command that removes what may outlive the
	// process (docker rm -f NAME). It is run when the process has ended, and
	// also when this process is killed; that there is nothing left is no error.
	Remove []string

	Grace time.Duration // between asking and killing in Stop; 0: 5 seconds
}

// Server is a server that was started and found ready. Its methods may be
// called from several goroutines.
type Server struct {
	spec  Spec
	port  int
	cmd   *exec.Cmd
	done  chan struct{} // closed once the process has ended; Stop reaps it
	exit  string        // how it ended; read after done
	ready time.Duration
	guard io.WriteCloser // stdin of the guard, nil if there is none
	inner int            // Spec.Pid's answer; 0: none
	stop  sync.Mutex
	gone  bool // Stop has done its work
}

// portTaken says that another program has the port.
type portTaken struct{ port int }

func (e *portTaken) Error() string { return fmt.Sprintf("port %d is taken", e.port) }

// logLines is how many of the log's last lines an error quotes.
const logLines = 12

// Start starts the server and returns when its health path answers 200 and
// Spec.Ready, if there is one, returns nil. On any
// error nothing is left running; the error quotes the end of the log. The
// server must be stopped with Stop, even if it has ended by itself.
//
// When this process dies, however it dies, the server and its process group
// are killed; only a descendant that made a session of its own escapes.
func Start(ctx context.Context, spec Spec) (*Server, error) {
	if spec.Host == "" {
		spec.Host = "127.0.0.1"
	}
	if spec.ReadyTimeout == 0 {
		spec.ReadyTimeout = 5 * time.Minute
	}
	if spec.Grace == 0 {
		spec.Grace = 5 * time.Second
	}
	if spec.Port != 0 {
		if err := portFree(spec.Host, spec.Port); err != nil {
			return nil, fmt.Errorf("cannot start %s on port %d of %s: another program listens there (%w): stop it or choose another port", spec.Name, spec.Port, spec.Host, err)
		}
		return start(ctx, spec, spec.Port)
	}
	// Between choosing a free port and the server's taking it, somebody else
	// may take it.
	const tries = 4
	for i := 1; ; i++ {
		port, err := freePort(spec.Host)
		if err != nil {
			return nil, fmt.Errorf("cannot start %s: no free port on %s: %w", spec.Name, spec.Host, err)
		}
		s, err := start(ctx, spec, port)
		if taken := new(portTaken); err == nil || i == tries || !errors.As(err, &taken) {
			return s, err
		}
	}
}

// start starts the server on that port and waits until it is ready.
func start(ctx context.Context, spec Spec, port int) (*Server, error) {
	argv, err := spec.Argv(port)
	if err != nil {
		return nil, err
	}
	if len(argv) == 0 {
		return nil, fmt.Errorf("cannot start %s: its command line is empty", spec.Name)
	}
	log, err := os.OpenFile(spec.LogPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot write the log of %s: %w", spec.Name, err)
	}
	defer log.Close()

	s := &Server{spec: spec, port: port, done: make(chan struct{})}
	s.cmd = exec.Command(argv[0], argv[1:]...)
	s.cmd.Env, s.cmd.Dir = spec.Env, spec.Dir
	// A file, not a pipe through us: the server can write while we are busy,
	// and its last words stay when we are gone.
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:   true,            // Ctrl-C at our terminal is ours to handle
		Pdeathsig: syscall.SIGKILL, // see run
	}
	began := time.Now()
	started := make(chan error)
	go s.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", spec.Name, err)
	}
	s.guard = startGuard(s.cmd.Process.Pid, spec.Remove)
	limited, cancel := context.WithTimeoutCause(ctx, spec.ReadyTimeout, errNotReady)
	defer cancel()
	err = s.await(limited)
	if err == nil && spec.Ready != nil {
		err = s.overdue(limited, spec.Ready(limited, s.Endpoint()))
	}
	if err == nil && spec.Pid != nil {
		s.inner, err = spec.Pid(limited)
		err = s.overdue(limited, err)
	}
	if err != nil {
		// The log is read before Stop adds the server's farewell to it.
		last := s.LastLog(logLines)
		if stopErr := s.Stop(context.WithoutCancel(ctx)); stopErr != nil {
			err = errors.Join(err, stopErr)
		}
		return nil, withLog(err, last, spec.LogPath)
	}
	s.ready = time.Since(began)
	return s, nil
}

// overdue says of an error of the last steps that it came from the time limit.
func (s *Server) overdue(ctx context.Context, err error) error {
	if err == nil || !errors.Is(context.Cause(ctx), errNotReady) {
		return err
	}
	return fmt.Errorf("%s was not ready after %s (GET %s answered, but: %w): see its log, or raise --ready-timeout", s.spec.Name, s.spec.ReadyTimeout, s.spec.Health, err)
}

// run starts the process and waits for its end, all on one OS thread: the
// signal that Linux sends to a child whose parent dies follows the thread that
// made the child (prctl(2), PR_SET_PDEATHSIG; golang.org/issue/27505), so that
// thread has to live as long as the server.
//
// The process stays a zombie until Stop reaps it: as long, its number is given
// to no other process or group, and signals to it reach nobody else.
func (s *Server) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := s.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	s.exit = awaitExit(s.cmd.Process.Pid)
	close(s.done)
}

// startGuard starts a shell that outlives us just long enough to kill the
// server's process group: the parent-death signal reaches the server alone,
// not the workers that it started. The guard waits for a line on its stdin; a
// line means that all is over, end-of-file that we are dead. Without a shell
// there is no guard.
func startGuard(group int, remove []string) io.WriteCloser {
	const script = `read -r over && exit 0; kill -s KILL -- "-$1" 2>/dev/null; shift; [ $# = 0 ] || "$@" >/dev/null 2>&1`
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, "nativebench-guard", strconv.Itoa(group)}, remove...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // out of reach of Ctrl-C
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil
	}
	if err := cmd.Start(); err != nil {
		stdin.Close()
		return nil
	}
	return &guard{WriteCloser: stdin, cmd: cmd}
}

type guard struct {
	io.WriteCloser
	cmd *exec.Cmd
}

// Close dismisses the guard.
func (g *guard) Close() error {
	_, err := io.WriteString(g.WriteCloser, "over\n")
	return errors.Join(err, g.WriteCloser.Close(), g.cmd.Wait())
}

// await polls the health path until it answers 200. ctx ends with errNotReady
// when that has taken too long.
func (s *Server) await(ctx context.Context) error {
	probing, endProbe := context.WithCancel(ctx)
	defer endProbe()
	go func() { // nobody waits for an answer of the dead
		select {
		case <-s.done:
			endProbe()
		case <-probing.Done():
		}
	}()
	client := &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true}, // no proxy
		Timeout:   2 * time.Second,
	}
	answer := "nothing answered"
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		status, err := probe(probing, client, s.Endpoint()+s.spec.Health)
		select {
		case <-s.done:
			if portFree(s.spec.Host, s.port) != nil {
				return fmt.Errorf("%s ended before it was ready (%s), %w by another program: stop that one or choose another port", s.spec.Name, s.exit, &portTaken{s.port})
			}
			return fmt.Errorf("%s ended before it was ready (%s): see its log for the reason", s.spec.Name, s.exit)
		default:
		}
		if err == nil && status == http.StatusOK {
			return nil
		}
		if err == nil {
			answer = fmt.Sprintf("the last answer was status %d", status)
		}
		select {
		case <-s.done:
		case <-time.After(pause):
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), errNotReady) {
				return fmt.Errorf("%s was not ready after %s (GET %s: %s): see its log, or raise --ready-timeout", s.spec.Name, s.spec.ReadyTimeout, s.spec.Health, answer)
			}
			return fmt.Errorf("%s was not ready when the start was given up: %w", s.spec.Name, context.Cause(ctx))
		}
	}
}

var errNotReady = errors.New("not ready in time")

func probe(ctx context.Context, client *http.Client, url string) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	return resp.StatusCode, nil
}

// withLog adds the last lines of the log to err.
func withLog(err error, last []string, path string) error {
	if len(last) == 0 {
		return fmt.Errorf("%w\n  its log %s is empty", err, path)
	}
	return fmt.Errorf("%w\n  last lines of %s:\n    %s", err, path, strings.Join(last, "\n    "))
}

// Endpoint returns the server's base URL.
func (s *Server) Endpoint() string {
	return "http://" + net.JoinHostPort(s.spec.Host, strconv.Itoa(s.port))
}

// Port returns where the server listens.
func (s *Server) Port() int { return s.port }

// StartToReady returns how long it took from starting the process until it was
// ready: the first good answer of its health path and, where there is one, the
// end of Spec.Ready.
func (s *Server) StartToReady() time.Duration { return s.ready }

// Done is closed when the server's process has ended, asked or not.
func (s *Server) Done() <-chan struct{} { return s.done }

// Exit says how the process ended, for example "signal: killed"; empty while
// it runs.
func (s *Server) Exit() string {
	select {
	case <-s.done:
		return s.exit
	default:
		return ""
	}
}

// PIDs returns the server's process and all that descend from it, as they are
// now; nil when none is left.
func (s *Server) PIDs() []int {
	procs := tree(s.cmd.Process.Pid)
	pids := make([]int, len(procs))
	for i, p := range procs {
		pids[i] = p.pid
	}
	return pids
}

// Root returns the process from which all that do the server's work descend:
// Spec.Pid's, if there is one (the process started is then a mere client, of
// docker for example, and a descendant of this process), else its own; nothing
// once it has ended. Unlike PIDs it costs nothing.
func (s *Server) Root() []int {
	select {
	case <-s.done:
		return nil
	default:
		if s.inner > 0 {
			return []int{s.inner}
		}
		return []int{s.cmd.Process.Pid}
	}
}

// LastLog returns the last n lines of the log, oldest first.
func (s *Server) LastLog(n int) []string { return tail(s.spec.LogPath, n) }

// Stop asks the server to end, kills what has not ended after the grace or
// when ctx ends, and returns when the whole tree is gone. Calling it again
// does nothing.
func (s *Server) Stop(ctx context.Context) error {
	s.stop.Lock()
	defer s.stop.Unlock()
	if s.gone {
		return nil
	}
	root := s.cmd.Process.Pid
	// Who leaves the group or loses the parent is known only from before.
	procs := tree(root)
	_ = syscall.Kill(-root, syscall.SIGTERM)
	grace := time.NewTimer(s.spec.Grace)
	defer grace.Stop()
	pause := time.NewTicker(10 * time.Millisecond)
	defer pause.Stop()
	var killed time.Time
	for {
		procs = alive(merge(procs, tree(root)))
		if len(procs) == 0 {
			<-s.done
			break
		}
		if !killed.IsZero() {
			kill(root, procs) // whom they started meanwhile too
			if time.Since(killed) > 10*time.Second {
				return fmt.Errorf("%s could not be stopped: process %d is still there after SIGKILL (state %c)", s.spec.Name, procs[0].pid, procs[0].state)
			}
		}
		select {
		case <-pause.C:
			continue
		case <-grace.C:
		case <-ctx.Done():
		}
		if killed.IsZero() {
			killed = time.Now()
		}
		ctx = context.WithoutCancel(ctx)
	}
	if err := s.remove(ctx); err != nil {
		return err
	}
	s.gone = true
	if s.guard != nil {
		_ = s.guard.Close() // nothing is left for it to do
	}
	// Last: the number may now be another's. The error repeats what exit says.
	_ = s.cmd.Wait()
	return nil
}

// removeLimit bounds Spec.Remove.
const removeLimit = time.Minute

// remove runs Spec.Remove until nothing is left of what it removes; a removal
// that is under way already (docker run --rm begins one itself) is waited for.
func (s *Server) remove(ctx context.Context) error {
	if len(s.spec.Remove) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeLimit)
	defer cancel()
	for {
		said, err := exec.CommandContext(ctx, s.spec.Remove[0], s.spec.Remove[1:]...).CombinedOutput()
		text := strings.TrimSpace(string(said))
		switch {
		case err == nil || strings.Contains(text, "No such container"):
			return nil
		case !strings.Contains(text, "already in progress") || ctx.Err() != nil:
			return fmt.Errorf("%s has ended, but what it ran in may be left: %s: %w (%s): remove it by hand", s.spec.Name, strings.Join(s.spec.Remove, " "), err, text)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// freePort returns a port that nobody listens on at the moment.
func freePort(host string) (int, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// portFree returns why nobody can listen on that port, nil if somebody can.
func portFree(host string, port int) error {
	l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return l.Close()
}
