package launch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary plays the server, and the program that starts one, when this
// variable says so.
const roleVar = "NATIVEBENCH_LAUNCH_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVar); role {
	case "":
		goleak.VerifyTestMain(m)
	case "launcher":
		launcher(os.Args[1])
	default:
		serve(role, os.Args[1])
	}
}

// serve is a server with the habits that role names, on the port.
func serve(role, port string) {
	fmt.Println("starting up as", role)
	if strings.Contains(role, "die") {
		fmt.Fprintln(os.Stderr, "error: the model file is broken")
		os.Exit(3)
	}
	if strings.Contains(role, "stubborn") {
		signal.Ignore(syscall.SIGTERM)
	}
	if strings.Contains(role, "family") {
		for _, attr := range []*syscall.SysProcAttr{nil, {Setsid: true}} {
			child := exec.Command("/bin/sleep", "1000")
			child.SysProcAttr = attr
			if err := child.Start(); err != nil {
				fmt.Println(err)
				os.Exit(4)
			}
		}
	}
	if strings.Contains(role, "mute") {
		time.Sleep(time.Hour)
	}
	polls := 0
	http.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		polls++
		if polls < 3 || strings.Contains(role, "loading") {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	http.HandleFunc("/quit", func(http.ResponseWriter, *http.Request) {
		fmt.Println("giving up")
		os.Exit(5)
	})
	fmt.Println(http.ListenAndServe("127.0.0.1:"+port, nil))
	os.Exit(1)
}

// launcher starts a server, says which processes it has, and waits to be killed.
func launcher(log string) {
	how := spec(log, "serve family")
	how.Remove = []string{"/bin/sh", "-c", `echo removed >"$0"`, log + ".removed"}
	s, err := Start(context.Background(), how)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(s.PIDs())
	time.Sleep(time.Hour)
}

// spec is for a server of the given habits.
func spec(log, role string) Spec {
	return Spec{
		Name: "test-server",
		Argv: func(port int) ([]string, error) {
			self, err := os.Executable()
			return []string{self, strconv.Itoa(port)}, err
		},
		Env:     append(os.Environ(), roleVar+"="+role),
		LogPath: log,
		Health:  "/health",
	}
}

func logPath(t *testing.T) string { return filepath.Join(t.TempDir(), "server.log") }

func startServer(t *testing.T, role string) *Server {
	t.Helper()
	s, err := Start(t.Context(), spec(logPath(t), role))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// gone waits until none of the processes is left.
func gone(t *testing.T, procs []process) {
	t.Helper()
	for range 1000 {
		if procs = alive(procs); len(procs) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("still there: %v", procs)
}

func TestStartAndStop(t *testing.T) {
	s := startServer(t, "serve")
	resp, err := http.Get(s.Endpoint() + "/health")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("health after Start: %d", resp.StatusCode)
	}
	if s.StartToReady() <= 0 {
		t.Error("no time from start to ready")
	}
	if got := s.PIDs(); len(got) != 1 || got[0] != s.cmd.Process.Pid {
		t.Errorf("PIDs = %v, want [%d]", got, s.cmd.Process.Pid)
	}
	if got := s.Root(); len(got) != 1 || got[0] != s.cmd.Process.Pid {
		t.Errorf("Root = %v, want [%d]", got, s.cmd.Process.Pid)
	}
	if got := s.LastLog(5); !slices.Contains(got, "starting up as serve") {
		t.Errorf("log = %q", got)
	}
	if s.Exit() != "" {
		t.Errorf("Exit while it runs = %q", s.Exit())
	}
	procs := tree(s.cmd.Process.Pid)
	for range 2 { // the second does nothing
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	<-s.Done()
	if got := alive(procs); len(got) != 0 {
		t.Errorf("after Stop: %v", got)
	}
	if s.PIDs() != nil && len(s.PIDs()) != 0 {
		t.Errorf("PIDs after Stop = %v", s.PIDs())
	}
	if got := s.Root(); got != nil {
		t.Errorf("Root after Stop = %v", got)
	}
	if s.Exit() != "signal: terminated" {
		t.Errorf("Exit = %q", s.Exit())
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestStopTakesTheWholeTree(t *testing.T) {
	for _, role := range []string{"serve family", "serve family stubborn"} {
		t.Run(role, func(t *testing.T) {
			sp := spec(logPath(t), role)
			sp.Grace = 200 * time.Millisecond
			s, err := Start(t.Context(), sp)
			if err != nil {
				t.Fatal(err)
			}
			procs := tree(s.cmd.Process.Pid)
			if len(procs) != 3 { // one of them in a session of its own
				t.Errorf("tree = %v, want 3 processes", procs)
			}
			if err := s.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if left := alive(procs); len(left) != 0 {
				t.Errorf("left after Stop: %v", left)
			}
		})
	}
}

func TestStopWithEndedContextKillsAtOnce(t *testing.T) {
	sp := spec(logPath(t), "serve stubborn")
	sp.Grace = time.Hour
	s, err := Start(t.Context(), sp)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if s.Exit() != "signal: killed" {
		t.Errorf("Exit = %q", s.Exit())
	}
}

func TestServerThatEndsByItself(t *testing.T) {
	s := startServer(t, "serve")
	if resp, err := http.Get(s.Endpoint() + "/quit"); err == nil {
		resp.Body.Close()
	}
	<-s.Done()
	if s.Exit() != "exit status 5" {
		t.Errorf("Exit = %q", s.Exit())
	}
	if got := s.LastLog(1); !slices.Equal(got, []string{"giving up"}) {
		t.Errorf("last line = %q", got)
	}
	// Until Stop its number is given to nobody else.
	root := s.cmd.Process.Pid
	if p, ok := readProcess(root); !ok || p.state != 'Z' || p.parent != os.Getpid() {
		t.Errorf("process %d after its end: %+v, %v: want it kept for Stop to reap", root, p, ok)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if p, ok := readProcess(root); ok && p.parent == os.Getpid() {
		t.Errorf("process %d after Stop: %+v", root, p)
	}
}

func TestStartFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() }) // after the parallel subtests
	port := taken.Addr().(*net.TCPAddr).Port

	for _, tc := range []struct {
		name string
		role string
		edit func(*Spec)
		want []string
	}{
		{"dies early", "die", nil, []string{
			"test-server ended before it was ready (exit status 3)", "error: the model file is broken",
		}},
		{"is never ready", "serve loading", func(s *Spec) { s.ReadyTimeout = 2 * time.Second }, []string{
			"test-server was not ready after 2s", "status 503", "starting up as serve loading",
		}},
		{"hangs before it listens", "mute", func(s *Spec) { s.ReadyTimeout = 2 * time.Second }, []string{
			"test-server was not ready after 2s", "nothing answered", "raise --ready-timeout", "starting up as mute",
		}},
		{"is never ready for work", "serve", func(s *Spec) {
			s.ReadyTimeout = 3 * time.Second
			s.Ready = func(ctx context.Context, _ string) error {
				<-ctx.Done()
				return errors.New("no token came")
			}
		}, []string{"test-server was not ready after 3s (GET /health answered, but: no token came): see its log, or raise --ready-timeout"}},
		{"port taken", "serve", func(s *Spec) { s.Port = port }, []string{
			"cannot start test-server on port " + strconv.Itoa(port), "another program listens there", "choose another port",
		}},
		{"port taken between choice and use", "serve", func(s *Spec) {
			s.Argv = func(int) ([]string, error) {
				self, err := os.Executable()
				return []string{self, strconv.Itoa(port)}, err
			}
		}, []string{"test-server", "ended before it was ready (exit status 1)", "address already in use"}},
		{"no program", "serve", func(s *Spec) {
			s.Argv = func(int) ([]string, error) { return []string{"/nonexistent/server"}, nil }
		}, []string{"cannot start test-server", "/nonexistent/server", "no such file"}},
		{"no command line", "serve", func(s *Spec) {
			s.Argv = func(int) ([]string, error) { return nil, nil }
		}, []string{"cannot start test-server: its command line is empty"}},
		{"bad settings", "serve", func(s *Spec) {
			s.Argv = func(int) ([]string, error) { return nil, fmt.Errorf("0 slots: at least 1 is needed") }
		}, []string{"0 slots: at least 1 is needed"}},
		{"log cannot be written", "serve", func(s *Spec) { s.LogPath = "/nonexistent/dir/log" }, []string{
			"cannot write the log of test-server", "/nonexistent/dir/log",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			sp := spec(logPath(t), tc.role)
			if tc.edit != nil {
				tc.edit(&sp)
			}
			s, err := Start(t.Context(), sp)
			if err == nil {
				_ = s.Stop(context.Background())
				t.Fatal("started")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error lacks %q:\n%v", want, err)
				}
			}
		})
	}
}

// A free port that is taken before the server gets to it is given up for
// another one.
func TestFreePortIsRetried(t *testing.T) {
	sp := spec(logPath(t), "serve")
	var blockers []net.Listener
	argv := sp.Argv
	sp.Argv = func(port int) ([]string, error) {
		if len(blockers) < 2 {
			l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
			if err != nil {
				return nil, err
			}
			blockers = append(blockers, l)
		}
		return argv(port)
	}
	s, err := Start(t.Context(), sp)
	for _, l := range blockers {
		l.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(blockers) != 2 {
		t.Errorf("%d ports were blocked, want 2", len(blockers))
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestStartIsGivenUp(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	sp := spec(logPath(t), "mute")
	sp.Argv = func(port int) ([]string, error) {
		self, err := os.Executable()
		time.AfterFunc(100*time.Millisecond, func() { cancel(fmt.Errorf("interrupted by the user")) })
		return []string{self, strconv.Itoa(port)}, err
	}
	_, err := Start(ctx, sp)
	if err == nil || !strings.Contains(err.Error(), "interrupted by the user") {
		t.Errorf("err = %v", err)
	}
}

// Nothing is left when the process that started the server is killed with a
// signal that it cannot see.
func TestKilledLauncherLeavesNothing(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := logPath(t)
	cmd := exec.Command(self, log)
	cmd.Env = append(os.Environ(), roleVar+"=launcher")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "[") {
		t.Fatalf("the launcher says %q, %v", line, err)
	}
	var procs, escaped []process
	for _, f := range strings.Fields(strings.Trim(line, "[]\n")) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		p, ok := readProcess(pid)
		if !ok {
			t.Fatalf("process %d is not there", pid)
		}
		if pgid, _ := syscall.Getpgid(pid); pgid == pid && p.parent != cmd.Process.Pid {
			escaped = append(escaped, p) // made a session of its own
			continue
		}
		procs = append(procs, p)
	}
	if len(procs) != 2 || len(escaped) != 1 {
		t.Fatalf("processes %v and %v, want the server, one child in its group and one outside", procs, escaped)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	gone(t, procs)
	for _, p := range escaped {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
	gone(t, escaped)
	for range 1000 { // the guard runs it after it has killed the group
		if _, err := os.Stat(log + ".removed"); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("what outlives the process was not removed")
}

func TestReadyPidAndRemove(t *testing.T) {
	asked, removed := "", filepath.Join(t.TempDir(), "removed")
	how := spec(logPath(t), "serve")
	how.Ready = func(_ context.Context, endpoint string) error { asked = endpoint; return nil }
	how.Pid = func(context.Context) (int, error) { return 4321, nil }
	how.Remove = []string{"/bin/sh", "-c", `echo removed >"$0"`, removed}
	s, err := Start(t.Context(), how)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Root(); asked != s.Endpoint() || !slices.Equal(got, []int{4321}) {
		t.Errorf("asked %q at %q, roots %v", asked, s.Endpoint(), got)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(removed); err != nil {
		t.Error(err)
	}

	how.Ready = func(context.Context, string) error { return errors.New("it makes no token") }
	if _, err := Start(t.Context(), how); err == nil || !strings.Contains(err.Error(), "it makes no token") || !strings.Contains(err.Error(), "last lines of") {
		t.Errorf("a server that makes no token: %v", err)
	}
	how.Ready, how.Remove = nil, []string{"/bin/sh", "-c", "echo daemon is away; exit 1"}
	if s, err = Start(t.Context(), how); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(t.Context()); err == nil || !strings.Contains(err.Error(), "daemon is away") {
		t.Errorf("a removal that fails: %v", err)
	}
	// docker run --rm removes the container by itself: then both are at it.
	count := filepath.Join(t.TempDir(), "count")
	how.Remove = []string{"/bin/sh", "-c", `echo x >>"$0"
case $(grep -c x "$0") in
1 | 2) echo "Error response from daemon: removal of container c is already in progress" >&2 ;;
*) echo "Error response from daemon: No such container: c" >&2 ;;
esac
exit 1`, count}
	if s, err = Start(t.Context(), how); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("a removal under way: %v", err)
	}
	if b, _ := os.ReadFile(count); len(b) != 6 {
		t.Errorf("a removal under way was not waited for: %q", b)
	}
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	long := strings.Repeat("x", 400)
	if err := os.WriteFile(path, []byte("one\r\n\n\ntwo \xff\n"+long+"\nlast without end"), 0o644); err != nil {
		t.Fatal(err)
	}
	want := []string{"two \ufffd", long[:300] + "…", "last without end"}
	if got := tail(path, 3); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := tail(path, 100); len(got) != 4 {
		t.Errorf("got %d lines, want 4", len(got))
	}
	if got := tail(path+".none", 3); got != nil {
		t.Errorf("no file: %q", got)
	}
}

// Run waits for the end of a program and tells in one line why it failed.
func TestRun(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	if err := Run(t.Context(), Command{Name: "echo", Argv: []string{"/bin/sh", "-c", "echo hello"}, LogPath: log}); err != nil {
		t.Error(err)
	}
	err := Run(t.Context(), Command{Name: "it", Argv: []string{"/bin/sh", "-c", "echo why >&2; exit 3"}, LogPath: log})
	if err == nil || err.Error() != "it failed (exit status 3): hello; why" {
		t.Errorf("error %v", err)
	}
	if err := Run(t.Context(), Command{Name: "it", Argv: []string{"/nowhere/it"}, LogPath: log}); err == nil || !strings.Contains(err.Error(), "cannot start it") {
		t.Errorf("error %v", err)
	}
}

// A program that is given up is gone with all that it has started, a child in
// a session of its own too.
func TestRunIsGivenUp(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		const script = "sleep 1000 & echo $! >>$0; setsid sleep 1000 & echo $! >>$0; echo $$ >>$0; wait"
		ended <- Run(ctx, Command{Name: "it", Argv: []string{"/bin/sh", "-c", script, log + ".pids"}, LogPath: log})
	}()
	var pids []string
	for len(pids) < 3 {
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(5 * time.Millisecond):
		}
		b, err := os.ReadFile(log + ".pids")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		pids = strings.Fields(string(b))
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	for _, word := range pids {
		pid, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := readProcess(pid); ok && p.state != 'Z' && p.state != 'X' {
			t.Errorf("process %d is still there", pid)
		}
	}
}
