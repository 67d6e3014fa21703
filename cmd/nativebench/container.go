package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
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

// pull fetches an image that the engine has not yet; say tells how far it is.
func pull(ctx context.Context, image, logPath string, say func(string)) error {
	if exec.CommandContext(ctx, "docker", "image", "inspect", image).Run() == nil {
		return nil
	}
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("the log of docker pull: %w", err)
	}
	defer log.Close()
	say("fetching " + image)
	cmd := exec.CommandContext(ctx, "docker", "pull", image)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var complaint bytes.Buffer
	cmd.Stderr = io.MultiWriter(log, &complaint)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("--launch docker: %w", err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		fmt.Fprintln(log, lines.Text())
		say("fetching " + image + ": " + lines.Text())
	}
	_, _ = io.Copy(log, out) // after a line that is too long for the scanner
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("--launch docker: docker pull %s: %w (%s): see why, or pull it by hand", image, err, strings.Join(strings.Fields(complaint.String()), " "))
	}
	return nil
}

// mountOf is what of this machine a container must be shown for a model's
// directory to be whole in it, and the path of the directory below that. In the
// cache of the Hugging Face hub, models--NAME/snapshots/COMMIT holds links to
// ../../blobs.
func mountOf(dir string) (outside, below string, err error) {
	if dir, err = filepath.Abs(dir); err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return "", "", err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return "", "", err
	}
	outside = dir
	for _, f := range files {
		if f.Type()&os.ModeSymlink == 0 {
			continue
		}
		link := filepath.Join(dir, f.Name())
		to, err := os.Readlink(link)
		if err != nil {
			return "", "", err
		}
		target, err := filepath.EvalSymlinks(link)
		repo := filepath.Dir(filepath.Dir(dir))
		switch {
		case err == nil && !filepath.IsAbs(to) && within(outside, target):
		case err == nil && !filepath.IsAbs(to) && filepath.Base(filepath.Dir(dir)) == "snapshots" && within(repo, target):
			outside = repo
		default:
			return "", "", fmt.Errorf("--launch docker: %s is a link to %s, which a container would not see: give a directory with the files themselves (cp -rL makes one)", link, to)
		}
	}
	below, err = filepath.Rel(outside, dir)
	return outside, below, err
}

// within tells whether a path is in a directory; both are clean and absolute.
func within(dir, path string) bool { return strings.HasPrefix(path, dir+string(filepath.Separator)) }

// insideModel is where the weights lie inside a container.
const insideModel = "/model"

// containerShm is the shared memory of a container; compose.yaml has the same.
const containerShm = "1g"

// contain makes how start the server in a container of its row's image. The
// client of docker stays attached: its output is the log, and it passes signals
// on. argv receives the command line.
func contain(how *launch.Spec, row httpbackends.Server, start httpbackends.Start, argv *[]string) error {
	docker, err := exec.LookPath("docker")
	if err != nil {
		return fmt.Errorf("--launch docker: %w", err)
	}
	outside, below, err := mountOf(start.Model)
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
	variables := row.ContainerEnv(start)
	start.Model, start.Host = path.Join(insideModel, below), "0.0.0.0"
	how.Argv = func(port int) ([]string, error) {
		start.Port = port
		inside, err := row.ContainerArgv(start)
		if err != nil {
			return nil, err
		}
		p := strconv.Itoa(port)
		line := []string{
			docker, "run", "--rm", "--name", name, "--publish", "127.0.0.1:" + p + ":" + p,
			"--volume", outside + ":" + insideModel + ":ro", "--volume", cache + ":/root/.cache", "--shm-size", containerShm,
		}
		if hasGPU() {
			line = append(line, "--gpus", "device=0") // one: TGI would take all that it sees
		}
		for _, kv := range variables {
			line = append(line, "--env", kv)
		}
		*argv = append(append(line, row.Image), inside...)
		return *argv, nil
	}
	how.Remove = []string{docker, "rm", "--force", name}
	// The client passes SIGTERM on and waits as long as the server takes.
	how.Grace = 30 * time.Second
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
