//go:build cgo

package nvml

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Driver is what is used of NVIDIA's library. Both the real one and go-nvml's mock
// machines have it.
type Driver interface {
	Init() nvml.Return
	Shutdown() nvml.Return
	Extensions() nvml.ExtendedInterface
	SystemGetDriverVersion() (string, nvml.Return)
	SystemGetNVMLVersion() (string, nvml.Return)
	SystemGetCudaDriverVersion() (int, nvml.Return)
	DeviceGetCount() (int, nvml.Return)
	DeviceGetHandleByIndex(int) (nvml.Device, nvml.Return)
}

// handle is what is used of a device.
type handle interface {
	GetName() (string, nvml.Return)
	GetUUID() (string, nvml.Return)
	GetMemoryInfo() (nvml.Memory, nvml.Return)
	GetMemoryInfo_v2() (nvml.Memory_v2, nvml.Return)
	GetComputeRunningProcesses() ([]nvml.ProcessInfo, nvml.Return)
	GetTotalEnergyConsumption() (uint64, nvml.Return)
	GetPowerUsage() (uint32, nvml.Return)
	GetEnforcedPowerLimit() (uint32, nvml.Return)
	GetClockInfo(nvml.ClockType) (uint32, nvml.Return)
	GetTemperature(nvml.TemperatureSensors) (uint32, nvml.Return)
	GetTemperatureThreshold(nvml.TemperatureThresholds) (uint32, nvml.Return)
	GetCurrentClocksEventReasons() (uint64, nvml.Return)
	GetCurrentClocksThrottleReasons() (uint64, nvml.Return)
	GetUtilizationRates() (nvml.Utilization, nvml.Return)
	GetFieldValues([]nvml.FieldValue) nvml.Return
	GetPcieThroughput(nvml.PcieUtilCounter) (uint32, nvml.Return)
	GetPersistenceMode() (nvml.EnableState, nvml.Return)
	GetEccMode() (nvml.EnableState, nvml.EnableState, nvml.Return)
	GetMigMode() (int, int, nvml.Return)
	GetMaxMigDeviceCount() (int, nvml.Return)
	GetMigDeviceHandleByIndex(int) (nvml.Device, nvml.Return)
}

// Open opens libnvidia-ml.so.1. The error is one line that begins with "not
// available: ".
func Open() (*Library, error) { return OpenDriver(nvml.New()) }

// OpenDriver is Open of a library that is not the machine's own: of a mock machine
// in tests.
func OpenDriver(d Driver) (*Library, error) {
	if r := d.Init(); r != nvml.SUCCESS {
		if r == nvml.ERROR_LIBRARY_NOT_FOUND {
			return nil, &unavailable{"libnvidia-ml.so.1 could not be loaded (it comes with NVIDIA's driver; a container needs --gpus)", true}
		}
		return nil, unavailableFor("the driver", r)
	}
	n, r := d.DeviceGetCount()
	if r != nvml.SUCCESS {
		d.Shutdown()
		return nil, unavailableFor("the number of GPUs", r)
	}
	var s System
	s.Driver, r = d.SystemGetDriverVersion()
	s.Driver = orNotKnown(s.Driver, r)
	s.NVML, r = d.SystemGetNVMLVersion()
	s.NVML = orNotKnown(s.NVML, r)
	v, r := d.SystemGetCudaDriverVersion()
	s.CUDA = orNotKnown(fmt.Sprintf("%d.%d", v/1000, v%1000/10), r)

	has := map[string]bool{}
	for _, symbol := range optional() {
		has[symbol] = d.Extensions().LookupSymbol(symbol) == nil
	}
	var gpus []card
	for i := range n {
		h, r := d.DeviceGetHandleByIndex(i)
		if r != nvml.SUCCESS {
			s.Lost = append(s.Lost, fmt.Sprintf("GPU %d: %v", i, unavailableFor("the GPU", r)))
			continue
		}
		gpus = append(gpus, &device{handle: h, board: h, index: i, part: -1, has: has})
	}
	return open(s, gpus, func() error {
		if r := d.Shutdown(); r != nvml.SUCCESS {
			return unavailableFor("closing the driver's library", r)
		}
		return nil
	}), nil
}

// optional are the functions that not every driver has: those that came late,
// and those that are deprecated. One that is missing must not be called: the
// dynamic linker would end the process.
func optional() []string {
	return []string{
		symbolMemory2, symbolReasons, symbolThrottle, symbolMIG, symbolFields, symbolTemperature,
	}
}

const (
	symbolMemory2     = "nvmlDeviceGetMemoryInfo_v2"                // since 510
	symbolReasons     = "nvmlDeviceGetCurrentClocksEventReasons"    // since 535
	symbolThrottle    = "nvmlDeviceGetCurrentClocksThrottleReasons" // deprecated for it
	symbolMIG         = "nvmlDeviceGetMigMode"                      // since 450
	symbolFields      = "nvmlDeviceGetFieldValues"                  // since 384
	symbolTemperature = "nvmlDeviceGetTemperature"                  // deprecated
)

// device is a GPU, or a part of one. What a part has no value of its own for is
// asked of the board.
type device struct {
	handle, board handle
	index, part   int             // part: -1 for a whole GPU
	has           map[string]bool // of optional
}

func unavailableFor(what string, r nvml.Return) *unavailable {
	why := map[nvml.Return]string{
		nvml.ERROR_NOT_SUPPORTED:             "this GPU, or its mode, does not tell",
		nvml.ERROR_NO_PERMISSION:             "this user may not ask",
		nvml.ERROR_FUNCTION_NOT_FOUND:        "this driver is too old to tell",
		nvml.ERROR_ARGUMENT_VERSION_MISMATCH: "this driver is too old to tell",
		nvml.ERROR_GPU_IS_LOST:               "the GPU is lost: it fell off the bus, see dmesg for Xid messages",
		nvml.ERROR_RESET_REQUIRED:            "the GPU must be reset first",
		nvml.ERROR_DRIVER_NOT_LOADED:         "NVIDIA's kernel driver is not loaded",
		nvml.ERROR_LIB_RM_VERSION_MISMATCH:   "library and kernel driver are of different versions: restart the machine",
		nvml.ERROR_UNINITIALIZED:             "the library was closed",
	}[r]
	if why == "" {
		return &unavailable{fmt.Sprintf("%s: %s", what, r.Error()), false}
	}
	return &unavailable{fmt.Sprintf("%s: %s", what, why), true}
}

func orNotKnown(text string, r nvml.Return) string {
	if r != nvml.SUCCESS {
		return notKnown(unavailableFor("", r))
	}
	return text
}

func (d *device) describe() Device {
	out := Device{Index: d.index, Subject: subject(d.index, d.part), MemoryBytes: -1, PowerLimitW: -1, Processes: "visible"}
	var r nvml.Return
	out.Name, r = d.handle.GetName()
	out.Name = orNotKnown(out.Name, r)
	out.UUID, r = d.handle.GetUUID()
	out.UUID = orNotKnown(out.UUID, r)
	if m, r := d.handle.GetMemoryInfo(); r == nvml.SUCCESS {
		out.MemoryBytes = int64(m.Total)
	}
	if mw, r := d.board.GetEnforcedPowerLimit(); r == nvml.SUCCESS {
		out.PowerLimitW = float64(mw) / 1000
	}
	switch on, r := d.mig(); {
	case d.part >= 0:
		out.MIG = fmt.Sprintf("part of GPU %d", d.index)
	case r == nvml.ERROR_NOT_SUPPORTED:
		out.MIG = "off" // this GPU cannot be cut
	default:
		out.MIG = orNotKnown(onOff(on), r)
	}
	persistent, r := d.board.GetPersistenceMode()
	out.Persistence = orNotKnown(onOff(persistent == nvml.FEATURE_ENABLED), r)
	ecc, _, r := d.board.GetEccMode()
	out.ECC = orNotKnown(onOff(ecc == nvml.FEATURE_ENABLED), r)
	if r == nvml.ERROR_NOT_SUPPORTED {
		out.ECC = "off"
	}
	if _, err := d.processes(); err != nil {
		out.Processes = err.Error()
	}
	return out
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func (d *device) mig() (on bool, r nvml.Return) {
	if !d.has[symbolMIG] {
		return false, nvml.ERROR_NOT_SUPPORTED
	}
	now, _, r := d.board.GetMigMode()
	return now == nvml.DEVICE_MIG_ENABLE, r
}

func (d *device) parts() (list []card) {
	if on, r := d.mig(); !on || r != nvml.SUCCESS || d.part >= 0 {
		return nil
	}
	most, r := d.handle.GetMaxMigDeviceCount()
	if r != nvml.SUCCESS {
		return nil
	}
	for i := range most {
		if h, r := d.handle.GetMigDeviceHandleByIndex(i); r == nvml.SUCCESS { // others are free places
			list = append(list, &device{handle: h, board: d.board, index: d.index, part: i, has: d.has})
		}
	}
	return list
}

func (d *device) memory() (int64, error) {
	if d.has[symbolMemory2] {
		m, r := d.handle.GetMemoryInfo_v2()
		if r == nvml.SUCCESS {
			return int64(m.Used), nil
		}
		return 0, unavailableFor("memory in use", r)
	}
	m, r := d.handle.GetMemoryInfo() // counts what the driver reserves as used, too
	if r != nvml.SUCCESS {
		return 0, unavailableFor("memory in use", r)
	}
	return int64(m.Used), nil
}

func (d *device) processes() ([]process, error) {
	list, r := d.handle.GetComputeRunningProcesses()
	if r != nvml.SUCCESS {
		return nil, unavailableFor("memory by process", r)
	}
	out := make([]process, len(list))
	for i, p := range list {
		out[i] = process{int(p.Pid), -1}
		if p.UsedGpuMemory <= math.MaxInt64 { // NVML_VALUE_NOT_AVAILABLE is -1 without a sign
			out[i].bytes = int64(p.UsedGpuMemory)
		}
	}
	return out, nil
}

func (d *device) energy() (float64, error) {
	mj, r := d.board.GetTotalEnergyConsumption()
	if r != nvml.SUCCESS {
		return 0, unavailableFor("the energy counter", r)
	}
	return float64(mj) / 1000, nil
}

// power is that of the moment where the driver tells it (535 or newer);
// GetPowerUsage is a mean over a second on Ampere (but GA100) and newer.
func (d *device) power() (watts float64, moment bool, err error) {
	if v, _, err := d.field(nvml.FI_DEV_POWER_INSTANT, "power"); err == nil {
		return float64(v) / 1000, true, nil
	}
	mw, r := d.board.GetPowerUsage()
	if r != nvml.SUCCESS {
		return 0, false, unavailableFor("power", r)
	}
	return float64(mw) / 1000, false, nil
}

func (d *device) clocks() (sm, memory float64, err error) {
	a, r := d.board.GetClockInfo(nvml.CLOCK_SM)
	if r != nvml.SUCCESS {
		return 0, 0, unavailableFor("the SM clock", r)
	}
	b, r := d.board.GetClockInfo(nvml.CLOCK_MEM)
	if r != nvml.SUCCESS {
		return 0, 0, unavailableFor("the memory clock", r)
	}
	return float64(a), float64(b), nil
}

func (d *device) temperature() (float64, error) {
	c, r := uint32(0), nvml.ERROR_FUNCTION_NOT_FOUND
	if d.has[symbolTemperature] {
		c, r = d.board.GetTemperature(nvml.TEMPERATURE_GPU)
	}
	if r != nvml.SUCCESS {
		return 0, unavailableFor("the temperature", r)
	}
	return float64(c), nil
}

func (d *device) slowdown() (float64, error) {
	c, r := d.board.GetTemperatureThreshold(nvml.TEMPERATURE_THRESHOLD_SLOWDOWN)
	if r != nvml.SUCCESS {
		return 0, unavailableFor("the temperature of slowdown", r)
	}
	return float64(c), nil
}

func (d *device) reasons() (uint64, error) {
	mask, r := uint64(0), nvml.ERROR_FUNCTION_NOT_FOUND
	switch {
	case d.has[symbolReasons]:
		mask, r = d.board.GetCurrentClocksEventReasons()
	case d.has[symbolThrottle]: // the same bits
		mask, r = d.board.GetCurrentClocksThrottleReasons()
	}
	if r != nvml.SUCCESS {
		return 0, unavailableFor("the reasons of lower clocks", r)
	}
	return mask, nil
}

func (d *device) utilization() (busy, memory float64, err error) {
	u, r := d.board.GetUtilizationRates()
	if r != nvml.SUCCESS {
		return 0, 0, unavailableFor("utilization", r)
	}
	return float64(u.Gpu) / 100, float64(u.Memory) / 100, nil
}

func (d *device) pcie() (sent, received uint64, bits int, err error) {
	if sent, _, err = d.field(nvml.FI_DEV_PCIE_COUNT_TX_BYTES, "PCIe bytes sent"); err != nil {
		return 0, 0, 0, err
	}
	received, bits, err = d.field(nvml.FI_DEV_PCIE_COUNT_RX_BYTES, "PCIe bytes received")
	return sent, received, bits, err
}

func (d *device) pcieRates() (sent, received float64, err error) {
	tx, r := d.board.GetPcieThroughput(nvml.PCIE_UTIL_TX_BYTES)
	if r != nvml.SUCCESS {
		return 0, 0, unavailableFor("PCIe traffic", r)
	}
	rx, r := d.board.GetPcieThroughput(nvml.PCIE_UTIL_RX_BYTES)
	if r != nvml.SUCCESS {
		return 0, 0, unavailableFor("PCIe traffic", r)
	}
	return 1000 * float64(tx), 1000 * float64(rx), nil // it tells KB/s
}

// field reads one of the driver's numbered values, which is not negative.
func (d *device) field(id uint32, what string) (value uint64, bits int, err error) {
	if !d.has[symbolFields] {
		return 0, 0, unavailableFor(what, nvml.ERROR_FUNCTION_NOT_FOUND)
	}
	f := []nvml.FieldValue{{FieldId: id}}
	if r := d.board.GetFieldValues(f); r != nvml.SUCCESS {
		return 0, 0, unavailableFor(what, r)
	}
	if r := nvml.Return(f[0].NvmlReturn); r != nvml.SUCCESS {
		return 0, 0, unavailableFor(what, r)
	}
	raw := binary.NativeEndian.Uint64(f[0].Value[:])
	switch nvml.ValueType(f[0].ValueType) {
	case nvml.VALUE_TYPE_UNSIGNED_INT:
		return uint64(binary.NativeEndian.Uint32(f[0].Value[:])), 32, nil
	case nvml.VALUE_TYPE_UNSIGNED_LONG, nvml.VALUE_TYPE_UNSIGNED_LONG_LONG:
		return raw, 64, nil
	}
	return 0, 0, &unavailable{fmt.Sprintf("%s: the driver answers with values of kind %d", what, f[0].ValueType), true}
}
