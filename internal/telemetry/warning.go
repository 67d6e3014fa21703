package telemetry

import (
	"fmt"
	"strings"
)

// Thresholds of the warnings.
const (
	// Other work takes caches and memory bandwidth as well as cores: 5 % of the
	// cores is where it shows beside the usual run-to-run spread. Below a tenth
	// of a core it is the system's own housekeeping.
	busyShare = 0.05
	busyFloor = 0.10
	// With up to this many cores the client, the server and the sampler cannot
	// stay out of the model's way.
	fewCores = 2
	// Swap that was used long ago does no harm; a tenth of the memory in swap
	// says that the machine is short of it.
	swapShare = 0.10
)

// BusyWarning says that other work ran beside the measurement, or "". other is
// in cores (Use.OtherCores, Machine.LoadBefore), cores is Machine.Cores. The
// threshold is 5 % of the cores, at least 0.1 core.
func BusyWarning(other float64, cores int) string {
	if other < max(busyFloor, busyShare*float64(cores)) {
		return ""
	}
	return fmt.Sprintf("busy machine: other processes kept %.2f of %d cores busy; numbers are slower and vary more than on a quiet one", other, cores)
}

// GovernorWarning says that the CPU's frequency may follow the load, or "".
func GovernorWarning(governor string) string {
	if governor == "performance" || strings.HasPrefix(governor, "not known") {
		return ""
	}
	return fmt.Sprintf("frequency governor %s: speed follows the load, so short cells run slower and numbers vary; for steady ones: cpupower frequency-set -g performance", governor)
}

// CoresWarning says that the cores are few or rationed, or "".
func CoresWarning(m Machine) string {
	switch {
	case m.Cores <= fewCores:
		return fmt.Sprintf("%s: the client and the server share them with the model, so served numbers hold some of the client's own work", plural(m.Cores, "usable core"))
	case m.QuotaCores > 0 && m.LogicalCores > 0 && m.QuotaCores < float64(m.LogicalCores):
		return fmt.Sprintf("the control group allows %.3g cores' worth of time on %d cores: threads are stopped in the middle of a token when it is used up", m.QuotaCores, m.LogicalCores)
	}
	return ""
}

// SwapWarning says that the machine is short of memory, or "".
func SwapWarning(m Memory) string {
	if m.TotalBytes <= 0 || float64(m.SwapUsedBytes) <= swapShare*float64(m.TotalBytes) {
		return ""
	}
	return fmt.Sprintf("%.1f GiB are in swap: the machine is short of memory, and weights that are swapped out stall a token for milliseconds", float64(m.SwapUsedBytes)/(1<<30))
}

func warnings(m Machine) []string {
	var kept []string
	for _, w := range []string{BusyWarning(m.LoadBefore, m.Cores), GovernorWarning(m.Governor), CoresWarning(m), SwapWarning(m.Memory)} {
		if w != "" {
			kept = append(kept, w)
		}
	}
	if m.Throttled > 0 {
		kept = append(kept, fmt.Sprintf("the CPU is throttled by heat now (%d events in half a second)", m.Throttled))
	}
	return kept
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
