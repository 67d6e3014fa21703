//go:build cgo && linux

package nvml

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// TestBinding opens a library by its path as a driver's is opened, one that lacks
// what came after 2017 and one that has it.
func TestBinding(t *testing.T) {
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "cc" // there is one: this package was built with it
	}
	old := map[string]float64{
		"used_bytes": 6 << 30, "reads_total": 1, "gap_seconds": 0, "tree_bytes": 3 << 30, "tree_processes": 1, "foreign_bytes": 1 << 30, "foreign_processes": 1,
		"energy_joules_total": 123.456, "power_mean_watts": 150, "sm_mhz": 1380, "memory_mhz": 877, "celsius": 44, "clock_reasons": 4, "busy_ratio": 0.75, "memory_busy_ratio": 0.25,
	}
	newer := maps.Clone(old)
	delete(newer, "power_mean_watts")
	newer["used_bytes"], newer["power_watts"], newer["clock_reasons"], newer["pcie_sent_bytes_total"], newer["pcie_received_bytes_total"] = 5<<30, 160, 8, 0, 0
	for _, tt := range []struct {
		name string
		flag []string
		want map[string]float64
		slow map[string]float64
	}{
		{"old", nil, old, map[string]float64{"pcie_sent_bytes_per_second": 2e6, "pcie_received_bytes_per_second": 5e6}},
		{"newer", []string{"-DNEWER"}, newer, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "libnvidia-ml-"+tt.name+".so")
			if out, err := exec.Command(strings.Fields(cc)[0], append(tt.flag, "-shared", "-fPIC", "-o", path, "testdata/nvml.c")...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			l, err := OpenDriver(nvml.New(nvml.WithLibraryPath(path)))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}()
			if s := l.System(); s.Driver != "384.81" || s.CUDA != "9.0" || s.NVML != "9.384.81" {
				t.Errorf("the driver is %+v", s)
			}
			want := Device{Subject: "gpu0", Name: "Tesla V100", UUID: "GPU-1234", MemoryBytes: 16 << 30, PowerLimitW: 300, MIG: "off", Persistence: "on", ECC: "on", Processes: "visible"}
			if d := l.Devices(); len(d) != 1 || d[0] != want {
				t.Fatalf("devices %+v, want %+v", d, want)
			}
			probes := probesOf(t, l, want, func() []int { return []int{os.Getpid()} })
			if v := sampled(t, probes[:2]...); !maps.Equal(v, tt.want) {
				t.Errorf("values %v, want %v; missing %v", v, tt.want, missing(probes))
			}
			if (len(probes) == 2) != (tt.slow == nil) {
				t.Fatalf("%d probes", len(probes))
			}
			if len(probes) == 3 {
				if v := sampled(t, probes[2]); !maps.Equal(v, tt.slow) {
					t.Errorf("slowly %v, want %v", v, tt.slow)
				}
			}
		})
	}
	if _, err := OpenDriver(nvml.New(nvml.WithLibraryPath("/nonexistent/libnvidia-ml.so.1"))); err == nil || !strings.HasPrefix(err.Error(), "not available: ") {
		t.Errorf("a library that is not there: %v", err)
	}
}
