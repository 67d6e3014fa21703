package nvml

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/nativebench/nativebench/internal/telemetry"
)

// Periods of the series. Memory is what peaks are read from; the driver renews
// the others less often than they are asked for here.
const (
	// MemoryPeriod leaves room for a late timer within 10 ms.
	MemoryPeriod  = 8 * time.Millisecond
	processPeriod = 10 * time.Millisecond
	energyPeriod  = 50 * time.Millisecond
	boardPeriod   = 100 * time.Millisecond // power, clocks, reasons
	heatPeriod    = 500 * time.Millisecond
	trafficPeriod = time.Second
)

// share bounds what one series may cost: where a call takes longer than the
// 50th part of its period the period is stretched. Memory is not: a cell's peak
// depends on it.
const share = 50

// unchanged is how seldom a level that does not change is written again.
const unchanged = 100 * time.Millisecond

// Probe watches one device. Values of all its probes, each at its own period:
//
//   - used_bytes (of all processes) and reads_total, how often that was read;
//     gap_seconds, the longest time between two readings since it was last
//     written. Written when it changed, and every 100 ms.
//   - tree_bytes and tree_processes: of the processes that belong to the
//     backend; foreign_bytes and foreign_processes: of others. Written as above.
//   - energy_joules_total; power_watts, or power_mean_watts where the driver
//     may tell a mean over the last second only.
//   - sm_mhz, memory_mhz; celsius; clock_reasons (a mask, see Reasons);
//     busy_ratio (share of time in which a kernel ran), memory_busy_ratio.
//   - pcie_sent_bytes_total, pcie_received_bytes_total: counted from the first
//     sample on.
//
// A series that fails is left out, and its reason kept: see Missing.
type Probe struct {
	subject string
	period  time.Duration
	card    card
	roots   func() []int
	now     func() time.Time

	series  []*series
	allNow  bool
	used    int64
	written time.Time // used_bytes
	read    time.Time
	gap     time.Duration
	reads   int64
	seen    [2]tally     // processes of the backend and of others
	told    time.Time    // when they were last written
	verdict map[int]side // by PID
	pci     [2]counter
}

type series struct {
	name  string
	every time.Duration
	fixed bool // never stretched
	read  func(into map[string]float64) error

	next    time.Time
	calls   int64
	spent   time.Duration
	missing string // why the last call gave nothing
	over    bool   // asking again is of no use
}

// Probes returns what watches the device, each to be sampled in a goroutine of its
// own every Period, so that no slow call delays the one before it: memory and
// processes; then what the board tells, of which the energy counter alone takes
// 3.4 ms a call on an H100; then PCIe traffic where the driver takes 40 ms to tell
// it. roots returns the roots of the backend's processes, whose descendants
// belong to it.
func (l *Library) Probes(d Device, roots func() []int) ([]*Probe, error) {
	c, err := l.card(d)
	if err != nil {
		return nil, err
	}
	probe := func(period time.Duration) *Probe {
		return &Probe{subject: d.Subject, period: period, card: c, roots: roots, now: time.Now, used: -1, verdict: map[int]side{}}
	}
	memory, board := probe(MemoryPeriod), probe(energyPeriod)
	memory.add("memory", 0, true, memory.readMemory) // as often as it is sampled
	memory.add("processes", processPeriod, false, memory.readProcesses)
	board.add("energy", energyPeriod, false, one("energy_joules_total", c.energy))
	board.add("power", boardPeriod, false, board.readPower)
	board.add("clocks", boardPeriod, false, two("sm_mhz", "memory_mhz", c.clocks))
	board.add("reasons", boardPeriod, false, one("clock_reasons", func() (float64, error) {
		mask, err := c.reasons()
		return float64(mask), err
	}))
	board.add("temperature", heatPeriod, false, one("celsius", c.temperature))
	board.add("utilization", boardPeriod, false, two("busy_ratio", "memory_busy_ratio", c.utilization))
	all := []*Probe{memory, board}
	if _, _, _, err := c.pcie(); err == nil {
		board.add("pcie", boardPeriod, false, board.readTraffic)
	} else {
		traffic := probe(trafficPeriod)
		traffic.add("pcie", trafficPeriod, false, traffic.readRates)
		all = append(all, traffic)
	}
	return all, nil
}

func (p *Probe) add(name string, every time.Duration, fixed bool, read func(map[string]float64) error) {
	p.series = append(p.series, &series{name: name, every: every, fixed: fixed, read: read})
}

func one(name string, read func() (float64, error)) func(map[string]float64) error {
	return func(into map[string]float64) error {
		v, err := read()
		if err == nil {
			into[name] = v
		}
		return err
	}
}

func two(first, second string, read func() (a, b float64, err error)) func(map[string]float64) error {
	return func(into map[string]float64) error {
		a, b, err := read()
		if err == nil {
			into[first], into[second] = a, b
		}
		return err
	}
}

// Period is how often it is to be sampled.
func (p *Probe) Period() time.Duration { return p.period }

// Subject is the device's: gpu0.
func (p *Probe) Subject() string { return p.subject }

// All makes the next sample have every value.
func (p *Probe) All() { p.allNow = true }

// Sample reads the series that are due. What fails is told by Missing, not by
// the error: a GPU that tells less is no fault.
func (p *Probe) Sample(into map[string]float64) error {
	for _, s := range p.series {
		began := p.now()
		if s.over || !p.allNow && began.Before(s.next) {
			continue
		}
		err := s.read(into)
		took := p.now().Sub(began)
		s.calls++
		s.spent += took
		every := s.every
		if !s.fixed {
			every = max(every, share*took)
		}
		s.next = began.Add(every)
		if err != nil {
			s.missing = err.Error()
			var u *unavailable
			s.over = errors.As(err, &u) && u.lasting
		}
	}
	p.allNow = false
	return nil
}

func (p *Probe) readMemory(into map[string]float64) error {
	used, err := p.card.memory()
	if err != nil {
		return err
	}
	now := p.now()
	if p.reads > 0 {
		p.gap = max(p.gap, now.Sub(p.read))
	}
	p.read = now
	p.reads++
	if used == p.used && !p.allNow && now.Sub(p.written) < unchanged {
		return nil
	}
	into["used_bytes"], into["reads_total"], into["gap_seconds"] = float64(used), float64(p.reads), p.gap.Seconds()
	p.used, p.written, p.gap = used, now, 0
	return nil
}

func (p *Probe) readProcesses(into map[string]float64) error {
	list, err := p.card.processes()
	if err != nil {
		return err
	}
	ours, foreign := sortOut(list, p.roots, p.verdict)
	for pid := range p.verdict {
		if !slices.ContainsFunc(list, func(q process) bool { return q.pid == pid }) {
			delete(p.verdict, pid)
		}
	}
	now := p.now()
	if seen := [2]tally{ours, foreign}; seen != p.seen || p.allNow || now.Sub(p.told) >= unchanged {
		p.seen, p.told = seen, now
		into["tree_processes"], into["foreign_processes"] = float64(ours.n), float64(foreign.n)
		if ours.unknown+foreign.unknown == 0 {
			into["tree_bytes"], into["foreign_bytes"] = float64(ours.bytes), float64(foreign.bytes)
		}
	}
	if ours.unknown > 0 || foreign.unknown > 0 {
		return &unavailable{"memory by process: the driver lists processes without their memory", false}
	}
	return nil
}

// side is whose a process is.
type side int

const (
	stranger side = iota
	backends
	ownHelper // this program, or started by it for something else
)

// sortOut sums the memory of the backend's processes and of strangers'. This
// program's own are neither. verdict remembers by PID: one of ours stays so when
// its parent dies.
func sortOut(list []process, roots func() []int, verdict map[int]side) (ours, foreign tally) {
	var of []int
	if roots != nil {
		of = roots()
	}
	self := []int{os.Getpid()}
	for _, q := range list {
		if verdict[q.pid] != backends {
			switch {
			case telemetry.Within(q.pid, of):
				verdict[q.pid] = backends
			case verdict[q.pid] == stranger && telemetry.Within(q.pid, self):
				verdict[q.pid] = ownHelper
			}
		}
		switch verdict[q.pid] {
		case backends:
			ours.add(q)
		case stranger:
			foreign.add(q)
		}
	}
	return ours, foreign
}

// Level reads at one moment what is in use on a device and what of it the backend
// has, for moments at which both stand still. Values: used_bytes and tree_bytes;
// what the driver does not tell is left out.
type Level struct {
	subject string
	card    card
	roots   func() []int
}

// Level returns what reads the device at one moment; roots as of Probes.
func (l *Library) Level(d Device, roots func() []int) (*Level, error) {
	c, err := l.card(d)
	if err != nil {
		return nil, err
	}
	return &Level{d.Subject, c, roots}, nil
}

// Subject is the device's: gpu0.
func (l *Level) Subject() string { return l.subject }

// settleTries bounds how often a level is read until it stood still meanwhile:
// others may be at work on the device.
const settleTries = 5

// Sample reads until the device had as much in use after the processes were
// listed as before.
func (l *Level) Sample(into map[string]float64) error {
	for range settleTries {
		before, err := l.card.memory()
		if err != nil {
			return nil // Probe.Missing says why
		}
		list, listErr := l.card.processes()
		after, err := l.card.memory()
		if err != nil {
			return nil
		}
		into["used_bytes"] = float64(after)
		if ours, _ := sortOut(list, l.roots, map[int]side{}); listErr == nil && ours.unknown == 0 {
			into["tree_bytes"] = float64(ours.bytes)
		}
		if before == after {
			break
		}
	}
	return nil
}

type tally struct {
	n, unknown int // processes; those whose memory is not told
	bytes      int64
}

func (t *tally) add(q process) {
	t.n++
	if q.bytes < 0 {
		t.unknown++
		return
	}
	t.bytes += q.bytes
}

// counter follows a counter that wraps.
type counter struct {
	begun bool
	last  uint64
	sum   float64
}

func (c *counter) see(v uint64, bits int) float64 {
	if c.begun {
		d := v - c.last
		if bits == 32 {
			d = uint64(uint32(d))
		}
		c.sum += float64(d)
	}
	c.begun, c.last = true, v
	return c.sum
}

func (p *Probe) readPower(into map[string]float64) error {
	watts, moment, err := p.card.power()
	switch {
	case err != nil:
		return err
	case moment:
		into["power_watts"] = watts
	default:
		into["power_mean_watts"] = watts
	}
	return nil
}

func (p *Probe) readTraffic(into map[string]float64) error {
	sent, received, bits, err := p.card.pcie()
	if err != nil {
		return err
	}
	into["pcie_sent_bytes_total"] = p.pci[0].see(sent, bits)
	into["pcie_received_bytes_total"] = p.pci[1].see(received, bits)
	return nil
}

func (p *Probe) readRates(into map[string]float64) error {
	sent, received, err := p.card.pcieRates()
	if err == nil {
		into["pcie_sent_bytes_per_second"], into["pcie_received_bytes_per_second"] = sent, received
	}
	return err
}

// Missing says of each series that ended, or never began, why: "not available:
// …". For when sampling is over.
func (p *Probe) Missing() map[string]string {
	out := map[string]string{}
	for _, s := range p.series {
		if s.missing != "" {
			out[s.name] = s.missing
		}
	}
	return out
}

// CallSeconds is the mean time of one call of each series, those never called
// left out. For when sampling is over.
func (p *Probe) CallSeconds() map[string]float64 {
	out := map[string]float64{}
	for _, s := range p.series {
		if s.calls > 0 {
			out[s.name] = s.spent.Seconds() / float64(s.calls)
		}
	}
	return out
}

var (
	_ telemetry.Probe = (*Probe)(nil)
	_ telemetry.Probe = (*Level)(nil)
)

// Used is the memory in use on the device by all processes, in bytes.
func (l *Library) Used(d Device) (int64, error) {
	c, err := l.card(d)
	if err != nil {
		return 0, err
	}
	used, err := c.memory()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", d.Subject, err)
	}
	return used, nil
}
