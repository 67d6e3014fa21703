package launch

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Command is a program that is to run to its end.
type Command struct {
	Name    string // for messages
	Argv    []string
	Env     []string // the whole environment; nil: that of this process
	LogPath string   // receives stdout and stderr, appended
}

// Run runs the program and returns once its whole process tree is gone. When
// ctx ends the tree is killed, and the error is ctx's cause; when the program
// fails the error quotes the last line of its log. When this process dies,
// however it dies, the program and its process group are killed.
func Run(ctx context.Context, c Command) error {
	log, err := os.OpenFile(c.LogPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("cannot write the log of %s: %w", c.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = c.Env, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL} // see start
	started, done := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // see Server.run
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("cannot start %s: %w", c.Name, err)
	}
	guard := startGuard(cmd.Process.Pid, nil)
	defer func() {
		if guard != nil {
			_ = guard.Close() // nothing is left for it to do
		}
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		procs := tree(cmd.Process.Pid)
		kill(cmd.Process.Pid, procs)
		<-done
		for procs = alive(procs); len(procs) > 0; procs = alive(procs) {
			kill(cmd.Process.Pid, procs)
			time.Sleep(10 * time.Millisecond)
		}
		return fmt.Errorf("%s was given up: %w", c.Name, context.Cause(ctx))
	}
	if err == nil {
		return nil
	}
	said := strings.Join(tail(c.LogPath, runLines), "; ")
	if said == "" {
		said = "it said nothing"
	}
	return fmt.Errorf("%s failed (%w): %s", c.Name, err, said)
}

// runLines is how many of the log's last lines the error of Run quotes.
const runLines = 3
