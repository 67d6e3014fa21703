//go:build cgo

package nvml

import (
	"context"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"github.com/nativebench/nativebench/internal/telemetry"
	"github.com/nativebench/nativebench/internal/telemetry/nvml/nvmltest"
)

func opened(t *testing.T, d Driver) *Library {
	t.Helper()
	l, err := OpenDriver(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func TestMachinesOfOneAndOfEight(t *testing.T) {
	for _, n := range []int{1, 8} {
		m, states := nvmltest.Machine(n)
		l := opened(t, m)
		if s := l.System(); s.Driver != "550.54.15" || s.CUDA != "12.4" || s.NVML != "12.550.54.15" {
			t.Errorf("the driver is %+v", s)
		}
		if len(l.Devices()) != n {
			t.Fatalf("%d devices, want %d", len(l.Devices()), n)
		}
		for i, d := range l.Devices() {
			want := Device{
				Index: i, Subject: fmt.Sprintf("gpu%d", i), Name: m.Devices[i].(*server.Device).Config.Name, UUID: m.Devices[i].(*server.Device).UUID,
				MemoryBytes: 40 << 30, PowerLimitW: 400, MIG: "off", Persistence: "on", ECC: "on", Processes: "visible",
			}
			if d != want {
				t.Errorf("device %+v, want %+v", d, want)
			}
			states[i].Set(func(s *nvmltest.GPU) { s.Used = uint64(i+1) << 30 })
			probes := probesOf(t, l, d, nil)
			if len(probes) != 2 {
				t.Fatalf("%d probes, want 2", len(probes))
			}
			v := sampled(t, probes...)
			want2 := map[string]float64{
				"used_bytes": float64(i+1) * (1 << 30), "reads_total": 1, "gap_seconds": 0, "tree_bytes": 0, "tree_processes": 0, "foreign_bytes": 0, "foreign_processes": 0,
				"energy_joules_total": 1000.5, "power_watts": 300, "sm_mhz": 1410, "memory_mhz": 1215, "celsius": 35, "clock_reasons": 0,
				"busy_ratio": 0, "memory_busy_ratio": 0.1, "pcie_sent_bytes_total": 0, "pcie_received_bytes_total": 0,
			}
			if !maps.Equal(v, want2) {
				t.Errorf("values %v, want %v", v, want2)
			}
			if len(missing(probes)) != 0 {
				t.Errorf("missing: %v", missing(probes))
			}
			// Each reading of a counter is 2^30 further than the other one's, and
			// two are read each time: they wrap at 2^32.
			for k := 1; k <= 5; k++ {
				if v = sampled(t, probes...); v["pcie_sent_bytes_total"] != float64(k)*(2<<30) {
					t.Errorf("after %d readings %v bytes sent, want %v", k, v["pcie_sent_bytes_total"], float64(k)*(2<<30))
				}
			}
			// No slow call stands before a reading of memory.
			if fast, slow := probes[0].CallSeconds(), probes[1].CallSeconds(); len(fast) != 2 || len(slow) != 7 {
				t.Errorf("times of %v and %v, want 2 and 7", fast, slow)
			}
		}
	}
}

func TestMIGIsSeenByItsParts(t *testing.T) {
	m, states := nvmltest.Machine(2)
	whole := m.Devices[0].(*server.Device)
	whole.MigMode = nvml.DEVICE_MIG_ENABLE
	parts := []*server.Device{dgxa100.NewDevice(0), dgxa100.NewDevice(0)}
	for i, p := range parts {
		p.UUID = fmt.Sprintf("MIG-%d1111111-0000", i)
		nvmltest.Wire(&p.Device, &nvmltest.GPU{Used: uint64(i+1) << 20, Faults: map[string]nvml.Return{"energy": nvml.ERROR_NOT_SUPPORTED}})
	}
	whole.GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i < len(parts) {
			return parts[i], nvml.SUCCESS
		}
		return nil, nvml.ERROR_NOT_FOUND
	}
	states[0].Faults = map[string]nvml.Return{"processes": nvml.ERROR_NOT_SUPPORTED, "utilization": nvml.ERROR_NOT_SUPPORTED}
	l := opened(t, m)
	var got []string
	for _, d := range l.Devices() {
		got = append(got, d.Subject+" "+d.MIG)
	}
	if want := []string{"gpu0 on", "gpu0.0 part of GPU 0", "gpu0.1 part of GPU 0", "gpu1 off"}; !slices.Equal(got, want) {
		t.Fatalf("devices %q, want %q", got, want)
	}
	if p := l.Devices()[0].Processes; p != "not available: memory by process: this GPU, or its mode, does not tell" {
		t.Errorf("processes of the whole GPU: %q", p)
	}
	probes := probesOf(t, l, l.Devices()[2], nil)
	// Memory is the part's own, energy the whole board's.
	if v := sampled(t, probes...); v["used_bytes"] != 2<<20 || v["energy_joules_total"] < 1000 {
		t.Errorf("a part's values: %v", v)
	}
	if missing := missing(probes); missing["utilization"] != "not available: utilization: this GPU, or its mode, does not tell" || len(missing) != 1 {
		t.Errorf("missing: %v", missing)
	}
	list, notes := l.visible("", false, "")
	if len(list) != 1 || list[0].Subject != "gpu0.0" || len(notes) != 0 {
		t.Errorf("CUDA finds %v (%q), want the first part alone", list, notes)
	}
	if list, _ = l.visible("MIG-1", true, ""); len(list) != 1 || list[0].Subject != "gpu0.1" {
		t.Errorf("by UUID CUDA finds %v, want gpu0.1", list)
	}
}

func TestWhatIsDeniedIsMissingAlone(t *testing.T) {
	for _, tt := range []struct {
		call    string
		fault   nvml.Return
		series  string
		why     string
		without []string
	}{
		{"energy", nvml.ERROR_NOT_SUPPORTED, "energy", "not available: the energy counter: this GPU, or its mode, does not tell", []string{"energy_joules_total"}},
		{"energy", nvml.ERROR_NO_PERMISSION, "energy", "not available: the energy counter: this user may not ask", []string{"energy_joules_total"}},
		{"processes", nvml.ERROR_NO_PERMISSION, "processes", "not available: memory by process: this user may not ask", []string{"tree_bytes", "tree_processes", "foreign_bytes", "foreign_processes"}},
		{"processes", nvml.ERROR_NOT_SUPPORTED, "processes", "not available: memory by process: this GPU, or its mode, does not tell", []string{"tree_bytes", "tree_processes", "foreign_bytes", "foreign_processes"}},
		{"memory", nvml.ERROR_UNKNOWN, "memory", "not available: memory in use: ERROR_UNKNOWN", []string{"used_bytes", "reads_total", "gap_seconds"}},
		{"reasons", nvml.ERROR_FUNCTION_NOT_FOUND, "reasons", "not available: the reasons of lower clocks: this driver is too old to tell", []string{"clock_reasons"}},
	} {
		t.Run(tt.call+" "+tt.fault.Error(), func(t *testing.T) {
			m, _ := nvmltest.Machine(1)
			l := opened(t, m)
			want := sampled(t, probesOf(t, l, l.Devices()[0], nil)...)

			m, states := nvmltest.Machine(1)
			states[0].Faults[tt.call] = tt.fault
			l = opened(t, m)
			probes := probesOf(t, l, l.Devices()[0], nil)
			got := sampled(t, probes...)
			for _, name := range tt.without {
				delete(want, name)
			}
			if !maps.Equal(got, want) {
				t.Errorf("values %v, want %v", got, want)
			}
			if missing := missing(probes); len(missing) != 1 || missing[tt.series] != tt.why {
				t.Errorf("missing: %q, want %q of %s alone", missing, tt.why, tt.series)
			}
		})
	}
}

func TestWithoutFieldsPowerIsAMeanAndTrafficIsSlow(t *testing.T) {
	m, states := nvmltest.Machine(1)
	states[0].Faults["fields"] = nvml.ERROR_NOT_SUPPORTED
	l := opened(t, m)
	probes := probesOf(t, l, l.Devices()[0], nil)
	if len(probes) != 3 {
		t.Fatalf("%d probes, want 3", len(probes))
	}
	v := sampled(t, probes[:2]...)
	if _, instant := v["power_watts"]; instant || v["power_mean_watts"] != 250 {
		t.Errorf("power: %v", v)
	}
	if v = sampled(t, probes[2]); !maps.Equal(v, map[string]float64{"pcie_sent_bytes_per_second": 2e6, "pcie_received_bytes_per_second": 2e6}) {
		t.Errorf("the slow probe: %v", v)
	}
}

func TestAnOldDriverIsNotAskedForWhatItLacks(t *testing.T) {
	m, _ := nvmltest.Machine(1)
	m.LookupSymbolFunc = func(symbol string) error {
		if slices.Contains(optional(), symbol) {
			return fmt.Errorf("undefined symbol: %s", symbol)
		}
		return nil
	}
	d := m.Devices[0].(*server.Device)
	d.MemoryInfo.Used = 3 << 30 // of the first version
	l := opened(t, m)
	for name, call := range map[string]func() int{
		"GetMemoryInfo_v2":             func() int { return len(d.GetMemoryInfo_v2Calls()) },
		"GetCurrentClocksEventReasons": func() int { return len(d.GetCurrentClocksEventReasonsCalls()) },
		"GetMigMode":                   func() int { return len(d.GetMigModeCalls()) },
		"GetFieldValues":               func() int { return len(d.GetFieldValuesCalls()) },
		"GetTemperature":               func() int { return len(d.GetTemperatureCalls()) },
	} {
		if v := sampled(t, probesOf(t, l, l.Devices()[0], nil)...); v["used_bytes"] != 3<<30 {
			t.Errorf("memory in use is %v, want that of the older call", v["used_bytes"])
		}
		if n := call(); n != 0 {
			t.Errorf("%s was called %d times", name, n)
		}
	}
}

func probesOf(t *testing.T, l *Library, d Device, roots func() []int) []*Probe {
	t.Helper()
	probes, err := l.Probes(d, roots)
	if err != nil {
		t.Fatal(err)
	}
	return probes
}

func missing(probes []*Probe) map[string]string {
	all := map[string]string{}
	for _, p := range probes {
		maps.Copy(all, p.Missing())
	}
	return all
}

// watch samples probes as a run does, until the state has been changed and the
// window is over.
func watch(t *testing.T, all []*Probe, during func()) (telemetry.Log, [2]int64) {
	t.Helper()
	var log telemetry.Log
	ctx, cancel := context.WithCancel(context.Background())
	begun := make(chan struct{})
	done := make(chan struct{})
	began := time.Now()
	now := func() int64 { return time.Since(began).Nanoseconds() + 1 }
	go func() {
		defer close(done)
		rounds := 0
		var probes []telemetry.Probe
		for _, p := range all {
			probes = append(probes, p)
		}
		telemetry.Sampler{Period: time.Millisecond, Now: now, Probes: probes}.Run(ctx, func(at int64, subject string, v map[string]float64) {
			log.Add(at, subject, v)
			if subject == telemetry.SamplerSubject {
				if rounds++; rounds == 1 {
					close(begun)
				}
			}
		})
	}()
	<-begun
	window := [2]int64{now(), 0}
	during()
	window[1] = now()
	cancel()
	<-done
	return log, window
}

func TestALostGPUEndsItsSeriesAndNothingElse(t *testing.T) {
	m, states := nvmltest.Machine(2)
	l := opened(t, m)
	for i, d := range l.Devices() {
		p := probesOf(t, l, d, nil)
		log, window := watch(t, p, func() {
			time.Sleep(20 * time.Millisecond)
			if i == 0 {
				states[0].Set(func(s *nvmltest.GPU) { s.All = nvml.ERROR_GPU_IS_LOST })
			}
			time.Sleep(20 * time.Millisecond)
		})
		use := log.GPU(window, telemetry.GPUAsked{Subject: d.Subject, Before: 500 << 20, Missing: missing(p), Reasons: telemetry.ClockReasons})
		if i == 1 {
			if len(use.Missing) != 0 || use.Peak != 500<<20 || use.EnergyJ <= 0 {
				t.Errorf("the GPU beside the lost one: %+v", use)
			}
			continue
		}
		for _, series := range []string{"memory", "processes", "energy", "power", "clocks", "reasons", "temperature", "utilization", "pcie"} {
			if why := use.Missing[series]; !strings.HasPrefix(why, "not available: ") || !strings.Contains(why, "the GPU is lost") {
				t.Errorf("%s of the lost GPU: %q", series, why)
			}
		}
		if use.Peak != -1 || use.EnergyJ != -1 || use.PeakW != -1 || use.SMMHz != -1 || use.MaxCelsius != -1 || use.Busy != -1 || use.PCIeSent != -1 || use.OwnPeak != -1 {
			t.Errorf("the lost GPU has numbers: %+v", use)
		}
	}
}

func TestProcessesOfTheTreeAreToldFromOthers(t *testing.T) {
	m, states := nvmltest.Machine(1)
	l := opened(t, m)
	self := os.Getpid()
	states[0].Processes = []nvml.ProcessInfo{{Pid: uint32(self), UsedGpuMemory: 3 << 30}, {Pid: 1, UsedGpuMemory: 1 << 30}}
	d := l.Devices()[0]
	p := probesOf(t, l, d, func() []int { return []int{os.Getppid()} })[0]
	v := sampled(t, p)
	if v["tree_bytes"] != 3<<30 || v["tree_processes"] != 1 || v["foreign_bytes"] != 1<<30 || v["foreign_processes"] != 1 {
		t.Errorf("%v", v)
	}
	states[0].Set(func(s *nvmltest.GPU) { s.Processes[0].UsedGpuMemory = math.MaxUint64 }) // NVML_VALUE_NOT_AVAILABLE
	if v = sampled(t, p); v["tree_processes"] != 1 {
		t.Errorf("%v", v)
	}
	if _, has := v["tree_bytes"]; has || !strings.Contains(p.Missing()["processes"], "without their memory") {
		t.Errorf("memory that is not told: %v, %q", v, p.Missing())
	}
}

// What this program or another child of it holds is neither the backend's nor a
// stranger's.
func TestOwnProcessesAreNoStrangers(t *testing.T) {
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	m, states := nvmltest.Machine(1)
	l := opened(t, m)
	states[0].Processes = []nvml.ProcessInfo{{Pid: uint32(os.Getpid()), UsedGpuMemory: 518 << 20}, {Pid: uint32(child.Process.Pid), UsedGpuMemory: 3 << 30}, {Pid: 1, UsedGpuMemory: 1 << 30}}
	roots := []int(nil)
	p := probesOf(t, l, l.Devices()[0], func() []int { return roots })[0]
	if v := sampled(t, p); v["tree_bytes"] != 0 || v["tree_processes"] != 0 || v["foreign_bytes"] != 1<<30 || v["foreign_processes"] != 1 {
		t.Errorf("another child: %v", v)
	}
	roots = []int{child.Process.Pid}
	if v := sampled(t, p); v["tree_bytes"] != 3<<30 || v["tree_processes"] != 1 || v["foreign_bytes"] != 1<<30 || v["foreign_processes"] != 1 {
		t.Errorf("the backend: %v", v)
	}
}

// A level is of one moment: it is read again when the device's memory changed
// while the processes were listed, and what the driver hides is left out.
func TestALevelIsOfOneMoment(t *testing.T) {
	m, states := nvmltest.Machine(1)
	l := opened(t, m)
	self := uint32(os.Getpid())
	level, err := l.Level(l.Devices()[0], func() []int { return []int{int(self)} })
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	states[0].Set(func(s *nvmltest.GPU) {
		s.Before = func(s *nvmltest.GPU) { // weights come between the first two readings of memory
			switch asked++; asked {
			case 1:
				s.Used, s.Processes = 1<<30, []nvml.ProcessInfo{{Pid: self, UsedGpuMemory: 500 << 20}}
			case 3:
				s.Used, s.Processes = 3<<30, []nvml.ProcessInfo{{Pid: self, UsedGpuMemory: 2500 << 20}, {Pid: 1, UsedGpuMemory: 1 << 20}}
			}
		}
	})
	read := func() map[string]float64 {
		v := map[string]float64{}
		if err := level.Sample(v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := read(); !maps.Equal(v, map[string]float64{"used_bytes": 3 << 30, "tree_bytes": 2500 << 20}) || asked != 6 {
		t.Errorf("%v after %d calls", v, asked)
	}
	states[0].Set(func(s *nvmltest.GPU) { s.Before, s.Faults["processes"] = nil, nvml.ERROR_NO_PERMISSION })
	if v := read(); !maps.Equal(v, map[string]float64{"used_bytes": 3 << 30}) {
		t.Errorf("without processes: %v", v)
	}
	states[0].Set(func(s *nvmltest.GPU) { s.All = nvml.ERROR_GPU_IS_LOST })
	if v := read(); len(v) != 0 {
		t.Errorf("of a lost GPU: %v", v)
	}
}

func TestVisibleDevices(t *testing.T) {
	m, _ := nvmltest.Machine(8)
	l := opened(t, m)
	for _, tt := range []struct {
		value string
		set   bool
		want  string
		note  string
	}{
		{"", false, "gpu0 gpu1 gpu2 gpu3 gpu4 gpu5 gpu6 gpu7", ""},
		{"", true, "", ""},
		{"-1", true, "", ""},
		{"3", true, "gpu3", ""},
		{"3,1", true, "gpu3 gpu1", ""},
		{"2, GPU-50000000", true, "gpu2 gpu5", ""},
		{"2,9,1", true, "gpu2", `no GPU "9"`},
		{"GPU-9", true, "", `no GPU "GPU-9"`},
		{"GPU-", true, "", `no GPU "GPU-"`},
	} {
		list, notes := l.visible(tt.value, tt.set, "")
		var got []string
		for _, d := range list {
			got = append(got, d.Subject)
		}
		if strings.Join(got, " ") != tt.want || !strings.Contains(strings.Join(notes, "\n"), tt.note) || tt.note == "" && len(notes) > 0 {
			t.Errorf("CUDA_VISIBLE_DEVICES=%q (set: %v) gives %q, %q; want %q, %q", tt.value, tt.set, got, notes, tt.want, tt.note)
		}
	}
	mixed := dgxa100.NewWithGPUs(gpus.A100_SXM4_40GB, gpus.A30_PCIE_24GB)
	for _, d := range mixed.Devices {
		nvmltest.Wire(&d.(*server.Device).Device, &nvmltest.GPU{Faults: map[string]nvml.Return{}})
	}
	l = opened(t, mixed)
	if _, notes := l.visible("1", true, ""); len(notes) != 1 || !strings.Contains(notes[0], "CUDA_DEVICE_ORDER=PCI_BUS_ID") {
		t.Errorf("GPUs of two kinds: %q", notes)
	}
	if _, notes := l.visible("1", true, "PCI_BUS_ID"); len(notes) != 0 {
		t.Errorf("GPUs of two kinds in the driver's order: %q", notes)
	}
}

func TestWaits(t *testing.T) {
	m, states := nvmltest.Machine(2)
	l := opened(t, m)
	before := map[string]int64{"gpu0": 500 << 20, "gpu1": 500 << 20}
	states[0].Set(func(s *nvmltest.GPU) { s.Used = 2 << 30 })
	go func() {
		time.Sleep(30 * time.Millisecond)
		states[0].Set(func(s *nvmltest.GPU) { s.Used = 501 << 20 })
	}()
	if released, warnings := l.waitFree(t.Context(), before, time.Minute); len(warnings) != 0 || released["gpu0"] != 501<<20 || released["gpu1"] != 500<<20 {
		t.Errorf("memory that came back: %v, %q", released, warnings)
	}
	states[1].Set(func(s *nvmltest.GPU) { s.Used = 1 << 30 })
	if released, warnings := l.waitFree(t.Context(), before, 0); len(warnings) != 1 || released["gpu1"] != 1<<30 ||
		!strings.Contains(warnings[0], "gpu1 has 1024 MiB in use") || !strings.Contains(warnings[0], "had 500 MiB before") {
		t.Errorf("memory that did not: %v, %q", released, warnings)
	}
	states[1].Set(func(s *nvmltest.GPU) { s.All = nvml.ERROR_GPU_IS_LOST })
	if released, warnings := l.waitFree(t.Context(), before, time.Minute); len(warnings) != 1 || len(released) != 1 || !strings.Contains(warnings[0], "the GPU is lost") {
		t.Errorf("a lost GPU: %v, %q", released, warnings)
	}

	states[0].Set(func(s *nvmltest.GPU) { s.Busy = 80 })
	go func() {
		time.Sleep(30 * time.Millisecond)
		states[0].Set(func(s *nvmltest.GPU) { s.Busy = 3 })
	}()
	if shared, hot := l.WaitIdle(t.Context(), l.Devices()[:1], time.Minute); len(shared)+len(hot) != 0 {
		t.Errorf("a GPU that became idle: %q, %q", shared, hot)
	}
	states[0].Set(func(s *nvmltest.GPU) { s.Busy, s.Celsius = 80, 75 })
	if shared, hot := l.WaitIdle(t.Context(), l.Devices()[:1], 0); len(shared) != 1 || len(hot) != 1 || !strings.HasPrefix(shared[0], "shared GPU: gpu0 was busy 80 %") || !strings.HasPrefix(hot[0], "hot GPU: gpu0 was at 75 °C") {
		t.Errorf("a busy and hot GPU: %q, %q", shared, hot)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if shared, hot := l.WaitIdle(ctx, l.Devices()[:1], time.Hour); len(shared) != 1 || len(hot) != 1 {
		t.Errorf("a wait that was stopped: %q, %q", shared, hot)
	}
}

func TestADriverThatDoesNotOpenSaysWhy(t *testing.T) {
	for _, tt := range []struct {
		init nvml.Return
		want string
	}{
		{nvml.ERROR_LIBRARY_NOT_FOUND, "not available: libnvidia-ml.so.1 could not be loaded"},
		{nvml.ERROR_DRIVER_NOT_LOADED, "not available: the driver: NVIDIA's kernel driver is not loaded"},
		{nvml.ERROR_LIB_RM_VERSION_MISMATCH, "not available: the driver: library and kernel driver are of different versions"},
	} {
		m, _ := nvmltest.Machine(1)
		m.InitFunc = func() nvml.Return { return tt.init }
		if _, err := OpenDriver(m); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%v: %v, want %q", tt.init, err, tt.want)
		}
	}
	m, _ := nvmltest.Machine(2)
	first := m.Devices[0]
	m.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i == 1 {
			return nil, nvml.ERROR_GPU_IS_LOST
		}
		return first, nvml.SUCCESS
	}
	l := opened(t, m)
	if lost := l.System().Lost; len(l.Devices()) != 1 || len(lost) != 1 || !strings.Contains(lost[0], "GPU 1: not available: the GPU: the GPU is lost") {
		t.Errorf("%v, lost: %q", l.Devices(), lost)
	}
}

func TestLevelsAreWrittenWhenTheyChange(t *testing.T) {
	m, states := nvmltest.Machine(1)
	l := opened(t, m)
	p := probesOf(t, l, l.Devices()[0], nil)[0]
	clock := time.Unix(1000, 0)
	p.now = func() time.Time { return clock }
	written, tree := 0, 0
	for i := range 100 {
		if i == 50 {
			states[0].Set(func(s *nvmltest.GPU) { s.Used = 9 << 30 })
		}
		v := map[string]float64{}
		if err := p.Sample(v); err != nil {
			t.Fatal(err)
		}
		if _, has := v["tree_bytes"]; has {
			tree++
		}
		if used, has := v["used_bytes"]; has {
			written++
			if i == 50 && (used != 9<<30 || v["reads_total"] != 51) {
				t.Errorf("the change: %v", v)
			}
		} else if i == 50 {
			t.Error("a change was not written")
		}
		clock = clock.Add(MemoryPeriod)
	}
	if written < 8 || written > 10 { // 0.8 s, one line each 100 ms and the change
		t.Errorf("100 readings in 0.8 s were written %d times", written)
	}
	if tree < 7 || tree > 9 {
		t.Errorf("processes that did not change were written %d times in 0.8 s", tree)
	}
}

func TestACostlySeriesIsStretched(t *testing.T) {
	m, states := nvmltest.Machine(1)
	l := opened(t, m)
	p := probesOf(t, l, l.Devices()[0], nil)[0]
	clock := time.Unix(1000, 0)
	p.now = func() time.Time { return clock }
	d := m.Devices[0].(*server.Device)
	d.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		clock = clock.Add(4 * time.Millisecond)
		return nil, nvml.SUCCESS
	}
	before := len(d.GetComputeRunningProcessesCalls())
	states[0].Set(func(s *nvmltest.GPU) { s.Used = 1 << 30 })
	began := clock
	for clock.Sub(began) < 2*time.Second {
		if err := p.Sample(map[string]float64{}); err != nil {
			t.Fatal(err)
		}
		clock = clock.Add(MemoryPeriod)
	}
	// 4 ms may be spent each 200 ms.
	if n := len(d.GetComputeRunningProcessesCalls()) - before; n < 9 || n > 11 {
		t.Errorf("a call of 4 ms was made %d times in 2 s", n)
	}
	if s := p.CallSeconds()["processes"]; s < 0.0039 || s > 0.0041 {
		t.Errorf("its mean time is %v s", s)
	}
}
