package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nativebench/nativebench/httpbackends"
	"github.com/nativebench/nativebench/internal/launch"
)

// Values of --launch.
const (
	launchProcess = "process"
	launchDocker  = "docker"
	launchNone    = "none"
)

// contained tells whether a backend is started in a container.
func (s *setup) contained(b backend) bool {
	return s.plan.Launch == launchDocker && b.server != nil && b.server.Image != ""
}

// dockerAnswers says why no container can be started.
func dockerAnswers(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	said, err := exec.CommandContext(ctx, "docker", "version", "--format", "{{.Server.Version}}").CombinedOutput()
	if err != nil {
		why := strings.TrimSpace(string(said))
		if why == "" {
			why = err.Error()
		}
		return fmt.Errorf("--launch docker: %s needs a docker engine, and none answers (%s): start one, or give --launch process or --endpoint %s=URL", name, strings.Join(strings.Fields(why), " "), name)
	}
	return nil
}

// insideModel is where the weights lie inside a container.
const insideModel = "/model"

// contain makes how start the server in a container of its row's image. The
// client of docker stays attached: its output is the log, and it passes signals
// on. argv receives the command line.
func contain(how *launch.Spec, row httpbackends.Server, start httpbackends.Start, argv *[]string) error {
	docker, err := exec.LookPath("docker")
	if err != nil {
		return fmt.Errorf("--launch docker: %w", err)
	}
	outside, err := filepath.Abs(start.Model)
	if err != nil {
		return err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return fmt.Errorf("--launch docker: the cache of what %s compiles needs a directory: %w; set XDG_CACHE_HOME", row.Name, err)
	}
	cache = filepath.Join(cache, "nativebench", "containers", row.Name)
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return fmt.Errorf("--launch docker: %w", err)
	}
	var b [6]byte
	rand.Read(b[:]) // never fails
	name := "nativebench-" + row.Name + "-" + hex.EncodeToString(b[:])
	start.Model, start.Host = insideModel, "0.0.0.0"
	how.Argv = func(port int) ([]string, error) {
		start.Port = port
		inside, err := row.ContainerArgv(start)
		if err != nil {
			return nil, err
		}
		p := strconv.Itoa(port)
		line := []string{
			docker, "run", "--rm", "--name", name, "--publish", "127.0.0.1:" + p + ":" + p,
			"--volume", outside + ":" + insideModel + ":ro", "--volume", cache + ":/root/.cache", "--shm-size", "1g",
		}
		if hasGPU() {
			line = append(line, "--gpus", "all")
		}
		for _, kv := range row.ContainerEnv(start) {
			line = append(line, "--env", kv)
		}
		*argv = append(append(line, row.Image), inside...)
		return *argv, nil
	}
	how.Remove = []string{docker, "rm", "--force", name}
	how.Grace = 30 * time.Second // the engine asks, waits ten seconds, and kills
	how.Pid = func(ctx context.Context) (int, error) {
		out, err := exec.CommandContext(ctx, docker, "inspect", "--format", "{{.State.Pid}}", name).Output()
		pid, parseErr := strconv.Atoi(strings.TrimSpace(string(out)))
		if err != nil || parseErr != nil || pid < 1 {
			return 0, fmt.Errorf("docker does not tell the process of the container %s, so its memory could not be measured: %q, %v", name, out, err)
		}
		return pid, nil
	}
	return nil
}
