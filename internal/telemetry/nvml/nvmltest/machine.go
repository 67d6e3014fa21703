//go:build cgo

package nvmltest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

// GPU is what a mock GPU answers. Change it by Set.
type GPU struct {
	mu sync.Mutex

	Used      uint64 // bytes
	Processes []nvml.ProcessInfo
	Joules    float64 // half a joule more at each reading
	Busy      uint32  // percent
	Celsius   uint32
	Reasons   uint64
	Faults    map[string]nvml.Return // by call: memory, processes, energy, power, clocks, temperature, reasons, utilization, fields, throughput
	All       nvml.Return            // every call's answer, if not SUCCESS
	// Before, if not nil, is called before each answer, to bring it up to date.
	Before func(*GPU)

	sent uint32
}

// Set changes what the GPU answers.
func (s *GPU) Set(change func(s *GPU)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func answer[T any](s *GPU, call string, v func() T) (T, nvml.Return) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Before != nil {
		s.Before(s)
	}
	var zero T
	if s.All != nvml.SUCCESS {
		return zero, s.All
	}
	if r := s.Faults[call]; r != nvml.SUCCESS {
		return zero, r
	}
	return v(), nvml.SUCCESS
}

// Wire makes a mock device answer as the GPU does.
func Wire(d *mock.Device, s *GPU) {
	d.GetMemoryInfo_v2Func = func() (nvml.Memory_v2, nvml.Return) {
		return answer(s, "memory", func() nvml.Memory_v2 { return nvml.Memory_v2{Total: 40 << 30, Used: s.Used} })
	}
	d.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		return answer(s, "processes", func() []nvml.ProcessInfo { return slices.Clone(s.Processes) })
	}
	d.GetTotalEnergyConsumptionFunc = func() (uint64, nvml.Return) {
		return answer(s, "energy", func() uint64 { s.Joules += 0.5; return uint64(1000 * s.Joules) })
	}
	d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return answer(s, "power", func() uint32 { return 250_000 }) }
	d.GetEnforcedPowerLimitFunc = func() (uint32, nvml.Return) { return 400_000, nvml.SUCCESS }
	d.GetClockInfoFunc = func(c nvml.ClockType) (uint32, nvml.Return) {
		return answer(s, "clocks", func() uint32 { return map[nvml.ClockType]uint32{nvml.CLOCK_SM: 1410, nvml.CLOCK_MEM: 1215}[c] })
	}
	d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) {
		return answer(s, "temperature", func() uint32 { return s.Celsius })
	}
	d.GetTemperatureThresholdFunc = func(nvml.TemperatureThresholds) (uint32, nvml.Return) { return 90, nvml.SUCCESS }
	d.GetCurrentClocksEventReasonsFunc = func() (uint64, nvml.Return) {
		return answer(s, "reasons", func() uint64 { return s.Reasons })
	}
	d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) {
		return answer(s, "utilization", func() nvml.Utilization { return nvml.Utilization{Gpu: s.Busy, Memory: 10} })
	}
	d.GetFieldValuesFunc = func(f []nvml.FieldValue) nvml.Return {
		_, r := answer(s, "fields", func() int {
			for i := range f {
				switch f[i].FieldId {
				case nvml.FI_DEV_POWER_INSTANT:
					f[i].ValueType, f[i].NvmlReturn = uint32(nvml.VALUE_TYPE_UNSIGNED_INT), 0
					binary.NativeEndian.PutUint32(f[i].Value[:], 300_000)
				case nvml.FI_DEV_PCIE_COUNT_TX_BYTES, nvml.FI_DEV_PCIE_COUNT_RX_BYTES:
					s.sent += 1 << 30 // wraps at the fourth reading
					f[i].ValueType, f[i].NvmlReturn = uint32(nvml.VALUE_TYPE_UNSIGNED_INT), 0
					binary.NativeEndian.PutUint32(f[i].Value[:], s.sent)
				default:
					f[i].NvmlReturn = uint32(nvml.ERROR_NOT_SUPPORTED)
				}
			}
			return 0
		})
		return r
	}
	d.GetPcieThroughputFunc = func(nvml.PcieUtilCounter) (uint32, nvml.Return) {
		return answer(s, "throughput", func() uint32 { return 2000 })
	}
	d.GetPersistenceModeFunc = func() (nvml.EnableState, nvml.Return) { return nvml.FEATURE_ENABLED, nvml.SUCCESS }
	d.GetEccModeFunc = func() (nvml.EnableState, nvml.EnableState, nvml.Return) {
		return nvml.FEATURE_ENABLED, nvml.FEATURE_ENABLED, nvml.SUCCESS
	}
	d.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	d.GetMigDeviceHandleByIndexFunc = func(int) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_NOT_FOUND }
}

// Machine is a DGX A100 with n of its GPUs, idle, with 500 MiB in use.
func Machine(n int) (*server.Server, []*GPU) {
	m := dgxa100.NewWithGPUs(gpus.Multiple(n, gpus.A100_SXM4_40GB)...)
	var all []*GPU
	for i, d := range m.Devices {
		s := &GPU{Used: 500 << 20, Celsius: 35, Joules: 1000, Faults: map[string]nvml.Return{}}
		device := d.(*server.Device)
		device.UUID = fmt.Sprintf("GPU-%d0000000-0000-0000-0000-000000000000", i)
		Wire(&device.Device, s)
		all = append(all, s)
	}
	return m, all
}
