package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/runner"
	"github.com/nativebench/nativebench/internal/telemetry"
	"github.com/nativebench/nativebench/internal/telemetry/nvml"
)

// gpuSet is the GPUs as the driver's library shows them.
type gpuSet struct {
	lib    *nvml.Library
	system nvml.System
	all    []nvml.Device
	used   []nvml.Device // that CUDA programs find here; the first is CUDA0
	notes  []string
	why    string // why there are none: "not available: …"
}

// openNVML is the driver's library; tests have a mock machine.
var openNVML = nvml.Open

// findGPUs opens the driver's library, once in a process: it stays open.
func findGPUs() gpuSet {
	lib, err := openNVML()
	if err != nil {
		return gpuSet{why: err.Error()}
	}
	g := gpuSet{lib: lib, system: lib.System(), all: lib.Devices()}
	g.used, g.notes = lib.Visible()
	if g.notes = append(g.notes, g.system.Lost...); len(g.used) == 0 {
		g.why = "not available: the driver knows no GPU"
		if len(g.all) > 0 {
			g.why = "not available: CUDA_VISIBLE_DEVICES leaves none of this machine's GPUs to CUDA programs"
		}
	}
	return g
}

// engineName is the name by which the engine knows the i-th of the GPUs used.
func engineName(i int) string { return fmt.Sprintf("CUDA%d", i) }

// note writes the GPUs into the manifest's environment.
func (g gpuSet) note(e *results.Environment) {
	e.GPUsMissing = g.why
	e.Warnings = append(e.Warnings, g.notes...)
	if g.lib == nil {
		return
	}
	e.Versions["nvidia_driver"], e.Versions["cuda_driver"], e.Versions["nvml"] = g.system.Driver, g.system.CUDA, g.system.NVML
	for i, d := range g.used {
		e.GPUs = append(e.GPUs, results.GPU{
			Device: d.Subject, Engine: engineName(i), Name: d.Name, UUID: d.UUID, MemoryB: d.MemoryBytes, PowerLimitW: d.PowerLimitW,
			MIG: d.MIG, Persistence: d.Persistence, ECC: d.ECC, Processes: d.Processes,
		})
	}
}

// gpuChecks are doctor's rows of the driver and of each GPU.
func gpuChecks(g gpuSet) []doctorCheck {
	const cost = "GPU memory, power, energy and clocks are not measured"
	checks := []doctorCheck{{"gpu", "driver library", false, func(patient) (verdict, string, string) {
		if g.lib == nil {
			return verdictMissing, g.why, cost
		}
		found := fmt.Sprintf("driver %s, CUDA up to %s, NVML %s", g.system.Driver, g.system.CUDA, g.system.NVML)
		switch {
		case g.why != "":
			return verdictMissing, found + "; " + g.why, cost
		case len(g.notes) > 0:
			return verdictWarn, found, strings.Join(g.notes, "; ")
		}
		return verdictOK, found, ""
	}}}
	for _, d := range g.all {
		checks = append(checks, doctorCheck{"gpu", d.Subject, false, func(patient) (verdict, string, string) { return lookDevice(g, d) }})
	}
	return checks
}

func lookDevice(g gpuSet, d nvml.Device) (verdict, string, string) {
	found := []string{d.String()}
	if d.PowerLimitW > 0 {
		found = append(found, fmt.Sprintf("%.0f W", d.PowerLimitW))
	}
	found = append(found, "MIG "+d.MIG, "persistence "+d.Persistence, "ECC "+d.ECC, "processes "+d.Processes)
	if i := slices.Index(g.used, d); i >= 0 {
		found = append(found, engineName(i))
	} else {
		found = append(found, "not used by CUDA programs started here")
	}
	text := strings.Join(found, ", ")
	var costs []string
	if d.Persistence == "off" {
		costs = append(costs, "the driver is loaded anew for each process, which takes seconds: nvidia-smi -pm 1")
	}
	if d.Processes != "visible" {
		costs = append(costs, "memory is that of the whole device, less what was in use before")
	}
	verdict := verdictOK
	if len(costs) > 0 || d.MIG == "on" || strings.HasPrefix(d.MIG, "part") {
		verdict = verdictWarn
	}
	if d.Processes == "visible" && telemetry.OwnPIDs() {
		costs = append(costs, "this process is in a PID namespace of its own: whether the driver knows its processes by the same numbers is checked at each cell, else memory is that of the whole device, less what was in use before")
	}
	if d.MIG == "on" || strings.HasPrefix(d.MIG, "part") {
		costs = append(costs, "power, energy, clocks and temperature are those of the whole board, other parts' work included")
	}
	return verdict, text, strings.Join(costs, "; ")
}

// memory is what is in use now, by device; those that do not tell are left out.
func (g gpuSet) memory() map[string]int64 {
	m := map[string]int64{}
	for _, d := range g.used {
		if used, err := g.lib.Used(d); err == nil {
			m[d.Subject] = used
		}
	}
	return m
}

// held is what is in use now, beside what was before.
func (g gpuSet) held(before map[string]int64) (all []results.GPUHeld) {
	now := g.memory()
	for _, d := range g.used {
		all = append(all, results.GPUHeld{Device: d.Subject, Before: orUnknown(before, d), Ready: orUnknown(now, d), Released: -1})
	}
	return all
}

func orUnknown(m map[string]int64, d nvml.Device) int64 {
	if v, known := m[d.Subject]; known {
		return v
	}
	return -1
}

// waitFree waits until what a backend held was given back, and fills in what is
// in use then.
func (g gpuSet) waitFree(ctx context.Context, held []results.GPUHeld) (warnings []string) {
	before := map[string]int64{}
	for _, h := range held {
		if h.Before >= 0 {
			before[h.Device] = h.Before
		}
	}
	if len(before) == 0 {
		return nil
	}
	released, warnings := g.lib.WaitFree(ctx, before)
	for i := range held {
		if v, known := released[held[i].Device]; known {
			held[i].Released = v
		}
	}
	return warnings
}

// releaseWait bounds the wait for memory that a process had on a GPU.
const releaseWait = 10 * time.Second

// released is waitFree for an engine in the process of a cell, which has ended.
func (g gpuSet) released(held []results.GPUHeld, uses []results.GPUUse) (warnings []string) {
	if len(held) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseWait)
	defer cancel()
	warnings = g.waitFree(ctx, held)
	for i := range uses {
		for _, h := range held {
			if h.Device == uses[i].Device {
				uses[i].Released = h.Released
			}
		}
	}
	return warnings
}

// Waits for idle and cool GPUs before a cell. One that did not come to rest once
// is not waited for that long before each of the cells that follow.
const (
	idleWait      = time.Minute
	idleWaitAgain = 2 * time.Second
)

// waitIdle waits until the GPUs are idle and cool; the warnings say which are
// busy with other work, and which hot, all the same.
func (x *execution) waitIdle() (shared, hot []string) {
	if len(x.gpus.used) == 0 {
		return nil, nil
	}
	x.show.phase("waiting for the GPU to be idle and cool")
	ctx, cancel := x.stop.either()
	defer cancel()
	limit := idleWait
	if x.restless {
		limit = idleWaitAgain
	}
	shared, hot = x.gpus.lib.WaitIdle(ctx, x.gpus.used, limit)
	x.restless = len(shared)+len(hot) > 0
	return shared, hot
}

// watched are the GPUs to be watched while the seat is measured. held is what is
// in use now, if the backend is yet to be started in the cell's process; why says
// that there is none.
func (g gpuSet) watched(s *keptSeat) (gpus func(roots func() []int) []runner.GPU, held []results.GPUHeld, why string) {
	none := func(func() []int) []runner.GPU { return nil }
	switch {
	case g.why != "":
		return none, nil, g.why
	case s.elsewhere:
		return none, nil, "not available: the server runs on another machine"
	}
	before := map[string]int64{} // a server that ran already: what was in use before it is not known
	switch {
	case s.pids == nil:
		before = g.memory()
		held = g.held(before)
	default:
		for _, h := range s.held {
			before[h.Device] = h.Before
		}
	}
	return func(roots func() []int) (all []runner.GPU) {
		for i, d := range g.used {
			probes, err := g.lib.Probes(d, roots)
			level, levelErr := g.lib.Level(d, roots)
			if err != nil || levelErr != nil {
				continue // it is one of the library's own
			}
			w := runner.GPU{Level: level, Asked: telemetry.GPUAsked{
				Subject: d.Subject, Engine: engineName(i), Name: d.Name, Before: orUnknown(before, d), Reasons: telemetry.ClockReasons,
			}}
			for _, p := range probes {
				w.Probes = append(w.Probes, p)
			}
			all = append(all, w)
		}
		return all
	}, held, ""
}
