// Package nvml watches NVIDIA GPUs through the driver's management library,
// which is opened at run time: a machine without it, and a program built
// without cgo, get one error that says so, and never zeros.
//
// It is part of stage 2 of the pipeline plan → runner → results → measure →
// report. What each call means is documented in NVIDIA's NVML reference manual:
// https://docs.nvidia.com/deploy/nvml-api/
package nvml

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/nativebench/nativebench/internal/telemetry"
)

// Device is a GPU, or a part of one that MIG has cut off, as the driver
// describes it. Texts that are not known begin with "not known: ".
type Device struct {
	// Index is the driver's (by PCI address), that of the whole GPU for a part.
	Index       int     `json:"index"`
	Subject     string  `json:"subject"` // of its samples: gpu0; gpu0.1 for a part
	Name        string  `json:"name"`
	UUID        string  `json:"uuid"`
	MemoryBytes int64   `json:"memory_bytes"` // -1: not known
	PowerLimitW float64 `json:"power_limit_watts"`
	MIG         string  `json:"mig"`         // off, on, "part of GPU 0"
	Persistence string  `json:"persistence"` // on, off
	ECC         string  `json:"ecc"`         // on, off
	// Processes is "visible" where the driver lists the processes with memory on
	// the device, or why it does not.
	Processes string `json:"processes"`
}

// System is the driver.
type System struct {
	Driver string `json:"driver"`
	CUDA   string `json:"cuda"` // newest that the driver supports
	NVML   string `json:"nvml"`
	// Lost are GPUs that the driver counts but does not answer for.
	Lost []string `json:"lost,omitempty"`
}

// Library is the opened library with its devices. Its methods may be called
// from several goroutines; a Probe belongs to one.
type Library struct {
	system  System
	devices []Device
	cards   []card // of the devices, in their order
	close   func() error
}

// card is one device as the driver answers for it. Each call may fail by
// itself: its error is an *unavailable.
type card interface {
	describe() Device
	// parts are those that MIG has cut off; none where it is off.
	parts() []card
	memory() (used int64, err error) // bytes, of all processes
	processes() ([]process, error)   // those that compute
	energy() (joules float64, err error)
	// power is of this moment, or a mean over a second.
	power() (watts float64, moment bool, err error)
	clocks() (sm, memory float64, err error) // MHz
	temperature() (celsius float64, err error)
	slowdown() (celsius float64, err error) // where the card slows itself down
	reasons() (mask uint64, err error)
	utilization() (busy, memory float64, err error) // 0 to 1
	// pcie are counters that wrap at 2^bits; rates blocks for 40 ms.
	pcie() (sent, received uint64, bits int, err error)
	pcieRates() (sent, received float64, err error) // bytes per second
}

// process is a process with memory on the device.
type process struct {
	pid   int
	bytes int64 // -1: the driver does not tell
}

// unavailable says why a value cannot be had.
type unavailable struct {
	reason  string
	lasting bool // asking again is of no use
}

func (u *unavailable) Error() string { return "not available: " + u.reason }

// System describes the driver.
func (l *Library) System() System { return l.system }

// Devices describes all GPUs, in the driver's order. Parts of a GPU under MIG
// follow it.
func (l *Library) Devices() []Device { return l.devices }

// Close gives the library back. Probes must not be used afterwards.
func (l *Library) Close() error { return l.close() }

// open makes a library of the driver's GPUs.
func open(system System, gpus []card, closer func() error) *Library {
	l := &Library{system: system, close: closer}
	for _, g := range gpus {
		for _, c := range append([]card{g}, g.parts()...) {
			l.cards = append(l.cards, c)
			l.devices = append(l.devices, c.describe())
		}
	}
	return l
}

// card finds the device that was described.
func (l *Library) card(d Device) (card, error) {
	for i, have := range l.devices {
		if have.Subject == d.Subject {
			return l.cards[i], nil
		}
	}
	return nil, fmt.Errorf("GPU %s is not one of the %d of this machine", d.Subject, len(l.devices))
}

func notKnown(err error) string {
	return "not known: " + strings.TrimPrefix(err.Error(), "not available: ")
}

func subject(index, part int) string {
	s := telemetry.GPUSubject + strconv.Itoa(index)
	if part >= 0 {
		s += "." + strconv.Itoa(part)
	}
	return s
}

// String is the device in one line.
func (d Device) String() string {
	text := fmt.Sprintf("GPU %d: %s", d.Index, d.Name)
	if d.MemoryBytes > 0 {
		text += fmt.Sprintf(", %.1f GiB", float64(d.MemoryBytes)/(1<<30))
	}
	return text
}
