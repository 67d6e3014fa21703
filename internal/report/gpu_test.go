package report

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
)

const mib = 1 << 20

// gpuUse is a GPU of which all is known.
func gpuUse(context, loaded, peak int64, e *results.CellEvent) results.GPUUse {
	seconds := float64(e.WindowNS[1]-e.WindowNS[0]) / 1e9
	return results.GPUUse{
		Device: "gpu0", Engine: "CUDA0", Name: "NVIDIA H200", Reads: int(seconds / 0.008), PeriodSeconds: 0.0081, GapSeconds: 0.011,
		Before: 520 * mib, Loaded: 520*mib + loaded, Peak: 520*mib + peak, Released: -1,
		OwnContext: context, OwnLoaded: loaded, OwnPeak: peak, Source: "processes", Foreign: 0, ForeignN: 0,
		EnergyJ: 310 * seconds, EnergySource: "counter", EnergyStep: 0.001 * seconds, MeanW: 310, PeakW: 402,
		SMMHz: 1972, SMMinMHz: 1905, MemoryMHz: 3201, MaxCelsius: 47, Busy: 0.93, PCIeSent: 2.5e6 * seconds, PCIeReceived: 12.5e6 * seconds, PCIeSource: "counter",
		CallSeconds: map[string]float64{"memory": 12e-6, "processes": 180e-6, "energy": 35e-6}, SamplerCores: 0.021,
	}
}

// gpuFixture has an engine that accounts for its memory, a server with a pool, a
// server whose processes are not seen on a GPU without an energy counter that
// was throttled and shared, and one that left the GPU alone.
func gpuFixture() *results.Run {
	backends := []string{"native", "vllm", "transformers", "llama-server"}
	f := newFixture("runs/gpu", backends...)
	env := &f.run.Manifest.Environment
	env.Versions = map[string]string{"nvidia_driver": "580.65.06", "cuda_driver": "13.0", "nvml": "13.580.65.06"}
	env.GPUs = []results.GPU{{Device: "gpu0", Engine: "CUDA0", Name: "NVIDIA H200", UUID: "GPU-1", MemoryB: 141 << 30, PowerLimitW: 700, MIG: "off", Persistence: "on", ECC: "on", Processes: "visible"}}
	for repeat := range 2 {
		for _, b := range backends {
			f.add(cellSpec{task: "chat", mode: "stream", backend: b, concurrency: 4, repeat: repeat, requests: 12, maxTokens: 40})
			e := &f.run.Events[len(f.run.Events)-1]
			switch b {
			case "native":
				e.Memory = []bench.MemoryPart{
					{Device: "CPU", Part: "weights", Bytes: 74 * mib}, {Device: "CUDA0", Part: "weights", Bytes: 252 * mib}, {Device: "CUDA0", Part: "kv", Bytes: 144 * mib}, {Device: "CUDA0", Part: "compute", Bytes: 99 * mib},
				}
				u := gpuUse(498*mib, 1002*mib, (1016+int64(repeat))*mib, e)
				u.Released = 520 * mib
				e.GPU = []results.GPUUse{u}
			case "vllm":
				e.GPU = []results.GPUUse{gpuUse(-1, 44360*mib, 44360*mib, e)}
				e.Server = &results.ServerUse{
					Scrapes: 5, RunningMax: 4, RunningMean: 3.5, WaitingMax: 0, KVCacheUsedMax: 0.0125, KVPoolTokens: 1 << 20, KVTokenBytes: 36864,
					PrefixHits: 0, PrefixQueries: 0, Preemptions: 0, QueueMeanSeconds: 0.0002, PromptTokens: -1, OutputTokens: -1, ScrapeSeconds: 0.004,
				}
			case "transformers":
				u := gpuUse(-1, 900*mib, 1500*mib, e)
				u.Source, u.SourceWhy = "device", "not available: memory by process: this user may not ask"
				u.Foreign, u.ForeignN = -1, -1
				u.EnergySource, u.EnergyStep, u.PowerMean = "power", 0.1, true
				u.Missing = map[string]string{"processes": u.SourceWhy, "energy": "not available: the energy counter: this GPU, or its mode, does not tell", "pcie": "not available: PCIe traffic: this user may not ask"}
				u.PCIeSent, u.PCIeReceived = -1, -1
				e.GPU = []results.GPUUse{u}
				e.Warnings = []string{"throttled GPU: gpu0's clocks were held down: power cap in 35 % of the samples (SM clock 1410 MHz on average, 1200 at least)"}
			case "llama-server":
				u := gpuUse(-1, 0, 0, e)
				e.GPU = []results.GPUUse{u}
			}
		}
	}
	f.run.Manifest.Backends[1].GPU = []results.GPUHeld{{Device: "gpu0", Before: 520 * mib, Ready: 44880 * mib, Released: 521 * mib}}
	return f.run
}

func TestTheLedgerOfTheReportAddsUp(t *testing.T) {
	out := write(t, func(b *bytes.Buffer) error { return JSON(b, []*results.Run{gpuFixture()}, Options{}) })
	var r jsonReport
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	got := map[string]jsonVRAM{}
	for _, v := range r.Runs[0].VRAM {
		got[v.Backend] = v
	}
	if len(got) != 3 {
		t.Fatalf("%d backends held GPU memory, want 3: %v", len(got), got)
	}
	n := got["native"]
	sum := *n.Grown + *n.Remainder
	for _, b := range n.Parts {
		sum += b
	}
	if sum != *n.OwnPeak || *n.OwnPeak != 1017*mib || *n.Remainder != 9*mib || n.Parts["context"] != 498*mib || *n.Released != 520*mib {
		t.Errorf("native: the parts make %d: %+v", sum, n)
	}
	if v := got["vllm"]; *v.KVReserved != 36864<<20 || *v.KVInUse != 36864<<20/80 || *v.Released != 521*mib || v.Remainder != nil {
		t.Errorf("vllm: %+v", v)
	}
	if v := got["transformers"]; v.Source != "device" || v.KVReserved != nil || v.Foreign != nil || v.Released != nil {
		t.Errorf("transformers: %+v", v)
	}
	for _, l := range r.Runs[0].Loads {
		for _, b := range l.Backends {
			e := b.Metrics["energy_per_token"]
			if b.Backend == "llama-server" {
				if e.Median != nil || !strings.Contains(e.Missing, "used no GPU") {
					t.Errorf("energy of a backend that left the GPU alone: %+v", e)
				}
			} else if e.Median == nil || *e.Median <= 0 {
				t.Errorf("%s: energy per token %+v", b.Backend, e)
			}
		}
	}
}

// Where nobody held GPU memory there is no table of it.
func TestNoGPUNoTables(t *testing.T) {
	run := oneFixture()
	run.Manifest.Environment.GPUsMissing = "not available: built without cgo"
	out := string(write(t, func(b *bytes.Buffer) error { return Terminal(b, []*results.Run{run}, Options{}) }))
	if strings.Contains(out, "Where the GPU memory goes") || strings.Contains(out, "clocks of the GPU") {
		t.Errorf("tables of nothing:\n%s", out)
	}
	if !strings.Contains(out, "not available: built without cgo") {
		t.Errorf("it does not say why there are none:\n%s", out)
	}
}
