package telemetry

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// counting is a probe that counts its samples and fails at times.
type counting struct {
	n    int
	done func(n int)
}

func (c *counting) Subject() string { return "counting" }

func (c *counting) Sample(into map[string]float64) error {
	c.n++
	if len(into) != 0 {
		return errors.New("the map is not empty")
	}
	into["n"] = float64(c.n)
	c.done(c.n)
	if c.n%2 == 0 {
		return errors.New("half blind")
	}
	return nil
}

func TestTheSamplerGoesRoundUntilItIsStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	probe := &counting{done: func(n int) {
		if n == 5 {
			cancel()
		}
	}}
	clock := int64(100)
	var got []float64
	var times []int64
	cost := Sampler{
		Period: time.Millisecond,
		Now:    func() int64 { clock++; return clock },
		Probes: []Probe{probe},
	}.Run(ctx, func(ts int64, subject string, v map[string]float64) {
		switch subject {
		case "counting":
			got = append(got, v["n"])
			times = append(times, ts)
		case SamplerSubject:
			if _, ok := v["cpu_seconds"]; !ok {
				t.Errorf("the sampler's sample is %v", v)
			}
		default:
			t.Errorf("subject %q", subject)
		}
	})
	if len(got) < 6 { // the last one is after the stop
		t.Errorf("samples %v", got)
	}
	if cost.Samples != len(got) || cost.CPUSeconds < 0 {
		t.Errorf("cost %+v after %d samples", cost, len(got))
	}
	for i := 1; i < len(times); i++ {
		if times[i] <= times[i-1] {
			t.Errorf("times %v", times)
		}
	}
	if d := cmp.Diff([]string{"counting: half blind"}, cost.Errors); d != "" {
		t.Errorf("errors (-want +got):\n%s", d)
	}
}

func TestALogSumsAWindow(t *testing.T) {
	var l Log
	add := func(t int64, subject, name string, v float64) {
		l.Add(t*1e9, subject, map[string]float64{name: v})
	}
	for i, rss := range []float64{100, 900, 300, 200, 800} { // at 0, 10, … 40 s
		add(int64(i*10), BackendSubject, "rss_bytes", rss)
		add(int64(i*10), BackendSubject, "cpu_seconds", float64(i*i))
		add(int64(i*10), HostSubject, "other_seconds", float64(i)*5)
		add(int64(i*10), HostSubject, "steal_seconds", float64(i)*2.5)
		add(int64(i*10), HostSubject, "cpu_mhz", 1000+float64(i)*100)
		add(int64(i*10), SamplerSubject, "cpu_seconds", float64(i)*0.1)
	}
	add(20, BackendSubject, "pss_bytes", 77)
	add(20, HostSubject, "cpu_mhz", math.NaN()) // left out
	for _, tt := range []struct {
		name     string
		from, to int64 // ns
		want     Use
	}{
		{"from sample to sample", 10e9, 30e9, Use{Samples: 3, PeakRSS: 900, PeakPSS: 77, CPUSeconds: 9 - 1, OtherCores: 0.5, StealCores: 0.25, MeanMHz: 1200, ProbeSeconds: 0.2}},
		{"between samples", 15e9, 35e9, Use{Samples: 2, PeakRSS: 300, PeakPSS: 77, CPUSeconds: 12.5 - 2.5, OtherCores: 0.5, StealCores: 0.25, MeanMHz: 1250, ProbeSeconds: 0.2}},
		{"within one period", 22e9, 24e9, Use{Samples: 0, PeakRSS: 300, PeakPSS: -1, CPUSeconds: 1, OtherCores: 0.5, StealCores: 0.25, MeanMHz: 1250, ProbeSeconds: 0.02}},
		{"past the end", 35e9, 60e9, Use{Samples: 1, PeakRSS: 800, PeakPSS: -1, CPUSeconds: 3.5, OtherCores: 0.5, StealCores: 0.25, MeanMHz: 1400, ProbeSeconds: 0.05}},
		{"all of it", 0, 40e9, Use{Samples: 5, PeakRSS: 900, PeakPSS: 77, CPUSeconds: 16, OtherCores: 0.5, StealCores: 0.25, MeanMHz: 1200, ProbeSeconds: 0.4}},
		{"never sampled", 50e9, 60e9, Use{Samples: 0, PeakRSS: 800, PeakPSS: -1, CPUSeconds: -1, OtherCores: -1, StealCores: -1, MeanMHz: 1400, ProbeSeconds: -1}},
		{"upside down", 30e9, 10e9, Use{Samples: 0, PeakRSS: 300, PeakPSS: -1, CPUSeconds: -1, OtherCores: -1, StealCores: -1, MeanMHz: 1250, ProbeSeconds: -1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := l.Use(BackendSubject, [2]int64{tt.from, tt.to})
			if d := cmp.Diff(tt.want, got, cmpopts.EquateApprox(0, 1e-9)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
	var none Log
	want := Use{PeakRSS: -1, PeakPSS: -1, CPUSeconds: -1, OtherCores: -1, StealCores: -1, MeanMHz: -1, ProbeSeconds: -1}
	if d := cmp.Diff(want, none.Use(BackendSubject, [2]int64{0, 1})); d != "" {
		t.Errorf("nothing sampled (-want +got):\n%s", d)
	}
}

func TestInspectKnowsOrSaysWhyNot(t *testing.T) {
	m := Inspect()
	for name, s := range map[string]string{"os": m.OS, "kernel": m.Kernel, "cpu": m.CPU, "governor": m.Governor, "turbo": m.Turbo, "huge pages": m.TransparentHuge} {
		if s == "" || s == "not known: " {
			t.Errorf("%s is %q", name, s)
		}
	}
	if m.Cores < 1 || m.LogicalCores > 0 && m.Cores > m.LogicalCores {
		t.Errorf("%d usable of %d cores", m.Cores, m.LogicalCores)
	}
	if m.Memory.TotalBytes < 1<<26 || m.Memory.AvailableBytes > m.Memory.TotalBytes || m.Memory.AvailableBytes <= 0 {
		t.Errorf("memory %+v", m.Memory)
	}
	if m.LoadBefore < 0 || m.LoadBefore > float64(m.LogicalCores)+1 {
		t.Errorf("load before %v on %d cores", m.LoadBefore, m.LogicalCores)
	}
}

func TestWarnings(t *testing.T) {
	quiet := Machine{Cores: 16, LogicalCores: 16, QuotaCores: -1, Governor: "performance", LoadBefore: 0.05, Memory: Memory{TotalBytes: 8 << 30}}
	for _, tt := range []struct {
		name   string
		change func(*Machine)
		want   string // "": no warning
	}{
		{"quiet", func(*Machine) {}, ""},
		{"a little busy", func(m *Machine) { m.LoadBefore = 0.7 }, ""},
		{"busy", func(m *Machine) { m.LoadBefore = 0.9 }, "0.90 of 16 cores"},
		{"busy with few cores", func(m *Machine) { m.Cores, m.LoadBefore = 4, 0.25 }, "0.25 of 4 cores"},
		{"load not known", func(m *Machine) { m.LoadBefore = -1 }, ""},
		{"powersave", func(m *Machine) { m.Governor = "powersave" }, "governor powersave"},
		{"mixed", func(m *Machine) { m.Governor = "performance, powersave" }, "governor performance, powersave"},
		{"governor not known", func(m *Machine) { m.Governor = notKnown("x") }, ""},
		{"one core", func(m *Machine) { m.Cores = 1 }, "1 usable core:"},
		{"quota", func(m *Machine) { m.QuotaCores = 4.5 }, "4.5 cores' worth"},
		{"swap", func(m *Machine) { m.Memory.SwapUsedBytes = 2 << 30 }, "2.0 GiB are in swap"},
		{"a little swap", func(m *Machine) { m.Memory.SwapUsedBytes = 1 << 20 }, ""},
		{"hot", func(m *Machine) { m.Throttled = 3 }, "heat"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := quiet
			tt.change(&m)
			got := strings.Join(warnings(m), "\n")
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) || strings.Contains(got, "\n") {
				t.Errorf("warnings %q, want one with %q", got, tt.want)
			}
		})
	}
}

// seldom is a probe that takes a costly value only when it is asked to.
type seldom struct {
	asked bool
	took  chan bool
}

func (s *seldom) Subject() string { return "seldom" }
func (s *seldom) All()            { s.asked = true }

func (s *seldom) Sample(map[string]float64) error {
	s.took <- s.asked
	s.asked = false
	return nil
}

func TestAMarkAndTheEndTakeCostlyValues(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	mark := make(chan struct{})
	probe := &seldom{took: make(chan bool)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Sampler{Period: time.Millisecond, Now: func() int64 { return 0 }, Probes: []Probe{probe}, Mark: mark}.Run(ctx, func(int64, string, map[string]float64) {})
	}()
	if <-probe.took {
		t.Error("the first sample was asked for all values")
	}
	marked := make(chan struct{})
	go func() { mark <- struct{}{}; close(marked) }()
	for !<-probe.took {
	}
	<-marked
	full := 1
	for <-probe.took {
		full++
	}
	if full != 2 {
		t.Errorf("%d full samples after a mark, want that and the next", full)
	}
	cancel()
	last := false
	for more := true; more; {
		select {
		case last = <-probe.took:
		case <-ended:
			more = false
		}
	}
	if !last {
		t.Error("the last sample does not have all values")
	}
}

// Memory from before the window, such as before the model was loaded, is no
// peak of it; what follows it is, unless the process was giving it back.
func TestPSSIsNeverFromBeforeTheWindow(t *testing.T) {
	for _, tt := range []struct {
		name     string
		rssAfter float64
		want     int64
	}{
		{"still there", 980, 700},
		{"given back", 300, -1},
	} {
		var l Log
		l.Add(10, BackendSubject, map[string]float64{"rss_bytes": 5, "pss_bytes": 9000}) // another program, before exec
		l.Add(20, BackendSubject, map[string]float64{"rss_bytes": 1000})
		if got := l.Use(BackendSubject, [2]int64{15, 25}).PeakPSS; got != -1 {
			t.Errorf("%s: peak %d from before the window", tt.name, got)
		}
		l.Add(30, BackendSubject, map[string]float64{"rss_bytes": tt.rssAfter, "pss_bytes": 700})
		if got := l.Use(BackendSubject, [2]int64{15, 25}).PeakPSS; got != tt.want {
			t.Errorf("%s: peak %d, want %d", tt.name, got, tt.want)
		}
	}
}
