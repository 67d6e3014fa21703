package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/results"
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

// findGPUs opens the driver's library, once in a process: it stays open.
func findGPUs() gpuSet {
	lib, err := nvml.Open()
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
		e.Devices = append(e.Devices, d.String())
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
	if d.MIG == "on" || strings.HasPrefix(d.MIG, "part") {
		costs = append(costs, "power, energy, clocks and temperature are those of the whole board, other parts' work included")
	}
	if len(costs) > 0 {
		return verdictWarn, text, strings.Join(costs, "; ")
	}
	return verdictOK, text, ""
}
