package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nativebench/nativebench/internal/plan"
)

// profiler is a tool of NVIDIA's that starts a program, waits for its
// cuProfilerStart and writes what it sees until cuProfilerStop.
type profiler struct {
	name    string // of its program
	install string // what to do when it is missing
	// argv is what stands before the command line of the program; the report goes
	// to out, to which the tool adds an extension. again: one report for each
	// capture, not only for the first.
	argv func(out string, again bool) []string
}

// profilers are the choices of --profile. Nothing is sampled from the CPU: the
// stacks of a Go program with C in it would be half a truth.
func profilers() []profiler {
	return []profiler{
		{
			name:    "nsys",
			install: "install Nsight Systems (with NVIDIA's CUDA repository: apt-get install cuda-nsight-systems-…, or https://developer.nvidia.com/nsight-systems) and put nsys into PATH",
			argv: func(out string, again bool) []string {
				end := "stop"
				if again {
					end = "repeat"
				}
				return []string{
					"nsys", "profile", "--trace=cuda,nvtx,osrt", "--cuda-graph-trace=node", "--sample=none", "--cpuctxsw=none", "--trace-fork-before-exec=true",
					"--capture-range=cudaProfilerApi", "--capture-range-end=" + end, "--force-overwrite=true", "--output=" + out,
				}
			},
		},
		{
			name:    "ncu",
			install: "install Nsight Compute (with NVIDIA's CUDA repository: apt-get install cuda-nsight-compute-…, or https://developer.nvidia.com/nsight-compute) and put ncu into PATH",
			argv: func(out string, _ bool) []string {
				return []string{"ncu", "--profile-from-start", "off", "--target-processes", "all", "--nvtx", "--force-overwrite", "--export", out}
			},
		},
	}
}

func profilerByName(name string) (profiler, bool) {
	i := slices.IndexFunc(profilers(), func(p profiler) bool { return p.name == name })
	if i < 0 {
		return profiler{}, false
	}
	return profilers()[i], true
}

// profileEnding is how long the process of a profiled cell may take to end: the
// tool writes its report then. A server's is written at the end of each capture.
const (
	profileEnding       = 15 * time.Minute
	profileServerEnding = 2 * time.Minute
)

// profilesDir is where reports of profilers go, within the run directory.
const profilesDir = "profiles"

// checkProfile refuses a profile that cannot be made.
func (s *setup) checkProfile() error {
	name := s.plan.Profile
	if name == "" {
		return nil
	}
	tool, ok := profilerByName(name)
	if !ok {
		return refuse("--profile %s: choose nsys or ncu", name)
	}
	wrapped := false
	for _, b := range s.backendsInUse() {
		switch {
		case !b.profiles:
			return refuse("--profile %s: %s has no way to be told where a profile begins: choose --backends of %s", name, b.name, strings.Join(s.known.profiled(), ", "))
		case s.plan.Endpoints[b.name] != "":
			continue // whoever started it had it watched
		case s.contained(b):
			return refuse("--profile %s: %s is started in a container, which %s does not see into: give --launch process, or --endpoint %s=URL", name, b.name, name, b.name)
		case !hasGPU():
			return refuse("--profile %s: it looks at the work of an NVIDIA GPU, and this machine has none: leave it away (nativebench ops times the operations of a CPU)", name)
		case s.plan.Engine.GPULayers == 0:
			return refuse("--profile %s: it looks at the work of a GPU, and --gpu-layers 0 forbids it: leave one of them away", name)
		}
		wrapped = true
	}
	if !wrapped {
		return nil
	}
	if _, err := exec.LookPath(tool.name); err != nil {
		return refuse("--profile %s: there is no %s in PATH: %s", name, tool.name, tool.install)
	}
	return nil
}

// profiled are the names of the backends that can be profiled.
func (r registry) profiled() (names []string) {
	for _, b := range r {
		if b.profiles {
			names = append(names, b.name)
		}
	}
	return names
}

// profileNote is the warning of a profiled run; "" if it is none.
func profileNote(p plan.Plan) string {
	if p.Profile == "" {
		return ""
	}
	return fmt.Sprintf("PROFILED RUN, NOT A MEASUREMENT: every cell ran under %s, which slows down what it looks at; no time, speed or verdict of this run may be quoted or compared. The profiles are in %s/", p.Profile, profilesDir)
}

// underProfiler returns a command line that has the run's profiler start another
// and write its report, called name, into the run directory.
func (x *execution) underProfiler(name string, again bool, command []string) ([]string, error) {
	tool, ok := profilerByName(x.plan.Profile)
	if !ok {
		return command, nil
	}
	dir, err := filepath.Abs(filepath.Join(x.out, profilesDir))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("the directory of the profiles: %w", err)
	}
	return append(tool.argv(filepath.Join(dir, name), again), command...), nil
}
