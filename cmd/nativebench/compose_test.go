package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	composetypes "github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/go-units"
	"github.com/google/go-cmp/cmp"

	"github.com/nativebench/nativebench/httpbackends"
	"github.com/nativebench/nativebench/internal/plan"
)

// compose reads compose.yaml as `docker compose` does: schema, anchors, variables.
func compose(t *testing.T, vars map[string]string) *composetypes.Project {
	t.Helper()
	t.Setenv("HOME", "/home/somebody")
	var env []string
	for k, v := range vars {
		env = append(env, k+"="+v)
	}
	options, err := cli.NewProjectOptions([]string{filepath.Join("..", "..", "compose.yaml")}, cli.WithEnv(env), cli.WithProfiles([]string{"*"}), cli.WithConsistency(true))
	if err != nil {
		t.Fatal(err)
	}
	p, err := options.LoadProject(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The servers of compose.yaml are those of --launch docker: same image, same
// arguments, same variables.
func TestComposeIsLaunchDocker(t *testing.T) {
	for _, c := range []struct {
		model          string
		context, slots int
		vars           map[string]string
	}{
		{"openai-community/gpt2", 1024, 16, nil},
		{"/models/phi-2", 2048, 4, map[string]string{"MODEL": "/models/phi-2", "CONTEXT": "2048", "MAX_INPUT": "2047", "SLOTS": "4", "POOL": "8192", "GPU": "1"}},
	} {
		p := compose(t, c.vars)
		seen := 0
		for _, row := range httpbackends.Servers() {
			if row.Image == "" {
				continue
			}
			seen++
			s, err := p.GetService(row.Name)
			if err != nil {
				t.Errorf("%s has an image, and no service: %v", row.Name, err)
				continue
			}
			if s.Image != row.Image {
				t.Errorf("%s: image %s, its row has %s", row.Name, s.Image, row.Image)
			}
			if len(s.Ports) != 1 || s.Ports[0].HostIP != "127.0.0.1" || s.Ports[0].Published != strconv.Itoa(int(s.Ports[0].Target)) {
				t.Errorf("%s: ports %+v", row.Name, s.Ports)
				continue
			}
			start := httpbackends.Start{Model: c.model, Host: "0.0.0.0", Port: int(s.Ports[0].Target), Slots: c.slots, Context: c.context, GPULayers: -1}
			want, err := row.ContainerArgv(start)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, []string(s.Command)); diff != "" {
				t.Errorf("%s: arguments of its row (-) and of compose.yaml (+):\n%s", row.Name, diff)
			}
			env := map[string]string{}
			for k, v := range s.Environment {
				if v == nil {
					t.Errorf("%s: %s would come from outside", row.Name, k)
				} else if k != "HF_HOME" && k != "HUGGINGFACE_HUB_CACHE" { // where the cache is mounted
					env[k] = *v
				}
			}
			for _, kv := range row.ContainerEnv(start) {
				k, v, _ := strings.Cut(kv, "=")
				if env[k] != v {
					t.Errorf("%s: variable %s is %q, of its row %q", row.Name, k, env[k], v)
				}
				delete(env, k)
			}
			if len(env) > 0 {
				t.Errorf("%s: variables that its row has not: %v", row.Name, slices.Sorted(maps.Keys(env)))
			}
			shm, err := units.RAMInBytes(containerShm)
			if err != nil || int64(s.ShmSize) != shm {
				t.Errorf("%s: shm_size %d, --launch docker has %d (%v)", row.Name, s.ShmSize, shm, err)
			}
			gpu := "0"
			if c.vars["GPU"] != "" {
				gpu = c.vars["GPU"]
			}
			devices := s.Deploy.Resources.Reservations.Devices
			if len(devices) != 1 || devices[0].Driver != "nvidia" || !slices.Equal(devices[0].IDs, []string{gpu}) {
				t.Errorf("%s: devices %+v, want one, GPU %s", row.Name, devices, gpu)
			}
			if s.HealthCheck == nil || !strings.Contains(strings.Join(s.HealthCheck.Test, " "), "http://127.0.0.1:"+s.Ports[0].Published+row.Health) {
				t.Errorf("%s: its health check does not ask %s: %+v", row.Name, row.Health, s.HealthCheck)
			}
			if !slices.Equal(s.Profiles, []string{row.Name}) {
				t.Errorf("%s: profiles %v: it would be started with others", row.Name, s.Profiles)
			}
			mounts := map[string]string{}
			for _, v := range s.Volumes {
				mounts[v.Target] = v.Source
			}
			if mounts["/hf"] != "/home/somebody/.cache/huggingface" || !strings.HasSuffix(mounts["/models"], "/models") {
				t.Errorf("%s: mounts %v", row.Name, mounts)
			}
		}
		if seen < 2 {
			t.Fatalf("only %d rows have images", seen)
		}
	}
}

// The table of docs/containers.md has every model as the plan has it.
func TestComposeVariables(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "containers.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range plan.Models() {
		length := m.Context
		if m.SlidingWindow > 0 {
			length = m.SlidingWindow // beyond it the servers differ
		}
		want := fmt.Sprintf("| `%s` | `MODEL=%s CONTEXT=%d MAX_INPUT=%d SLOTS=16 POOL=%d` |\n", m.Key, m.HubID, length, length-1, 16*length)
		if !strings.Contains(string(text), want) {
			t.Errorf("docs/containers.md lacks: %s", want)
		}
	}
}

func TestComposeNativebench(t *testing.T) {
	s, err := compose(t, nil).GetService("nativebench")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(s.Build.Context, s.Build.Dockerfile)); err != nil || s.Build.Dockerfile != "Dockerfile.cuda" {
		t.Errorf("it is built from %s: %v", s.Build.Dockerfile, err)
	}
	makefile, err := os.ReadFile(filepath.Join("..", "..", "Makefile"))
	if err != nil || !strings.Contains(string(makefile), "--tag "+s.Image+" ") {
		t.Errorf("`make docker-cuda` makes another image than %s (%v)", s.Image, err)
	}
}
