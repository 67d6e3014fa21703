//go:build linux

// Cost measures what the HTTP client costs and how far its times are off, with
// a server that knows the truth, beside a bare net/http client that only
// counts events (the floor).
//
//	go run ./scripts/cost [-pairs 1] [-streams 200 -rate 100] [-tokens N] [-rounds N] [-json]
//
// Server and client are processes of their own, on a core each. The true time
// to first token runs from the kernel's receive stamp of the request to the
// instant before the first write; a true gap lies between the instants before
// two writes. Errors are |reported - true|, request by request and gap by gap.
// A client that is slow to see the end of an answer asks for the next one late:
// that is measured from the instant before the last write to the kernel's
// receive stamp of the stream's next request.
package main

import (
	"bufio"
	"encoding/gob"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// load is one scenario.
type load struct {
	Streams  int     `json:"streams"`
	Rate     float64 `json:"tokens_per_second"` // of each stream
	Tokens   int     `json:"tokens"`            // of each answer
	Rounds   int     `json:"rounds"`            // requests of each stream, one after another
	First    int64   `json:"first_token_ns"`    // from the request to its first token
	Together bool    `json:"together"`          // all streams start at once
}

// interval is the time between two tokens of a stream, in ns.
func (l load) interval() int64 { return int64(1e9 / l.Rate) }

// ideal is how long the load takes when nobody is late, in ns.
func (l load) ideal() int64 {
	spread := l.interval() * int64(l.Streams-1) / int64(l.Streams)
	if l.Together {
		spread = 0
	}
	return spread + int64(l.Rounds)*(l.First+int64(l.Tokens-1)*l.interval())
}

func (l load) events() int { return l.Streams * l.Rounds * l.Tokens }

// args passes the load on to a child.
func (l load) args() []string {
	return []string{
		"-streams", strconv.Itoa(l.Streams), "-rate", fmt.Sprint(l.Rate), "-tokens", strconv.Itoa(l.Tokens),
		"-rounds", strconv.Itoa(l.Rounds), "-together=" + strconv.FormatBool(l.Together),
	}
}

// spread is the middle, the tail and the end of many times, in ns.
type spread struct {
	P50 int64 `json:"p50_ns"`
	P99 int64 `json:"p99_ns"`
	Max int64 `json:"max_ns"`
}

func spreadOf(x []int64) spread {
	if len(x) == 0 {
		return spread{}
	}
	slices.Sort(x)
	at := func(q float64) int64 { return x[min(len(x)-1, int(q*float64(len(x))))] }
	return spread{at(0.5), at(0.99), x[len(x)-1]}
}

func (s spread) String() string {
	return fmt.Sprintf("%.3f / %.3f / %.3f", float64(s.P50)/1e6, float64(s.P99)/1e6, float64(s.Max)/1e6)
}

// row is one client's showing at one load.
type row struct {
	load
	Client    string  `json:"client"`
	CPU       float64 `json:"cpu_us_per_event"`
	Allocs    float64 `json:"allocs_per_event"`
	Peak      int64   `json:"peak_resident_bytes"`
	TTFT      spread  `json:"ttft_error"`
	Gap       spread  `json:"gap_error"`
	Lateness  spread  `json:"server_lateness"`
	Next      spread  `json:"next_request"`
	Wall      int64   `json:"wall_ns"`
	Ideal     int64   `json:"ideal_ns"`
	Coalesced int     `json:"coalesced"`
	Unstamped int     `json:"unstamped"`
	Clock     int64   `json:"clock_uncertainty_ns"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "cost:", err)
		os.Exit(1)
	}
}

func run() error {
	var l load
	flag.IntVar(&l.Streams, "streams", 0, "streams at once; 0: the usual five loads")
	flag.Float64Var(&l.Rate, "rate", 50, "tokens per second of each stream")
	flag.IntVar(&l.Tokens, "tokens", 0, "tokens of an answer; 0: two seconds' worth")
	flag.IntVar(&l.Rounds, "rounds", 3, "requests of each stream")
	flag.BoolVar(&l.Together, "together", false, "start all streams at once, so that tokens come in bursts (else evenly over a token's time)")
	pairs := flag.Int("pairs", 1, "runs of each client and load, in turns")
	asJSON := flag.Bool("json", false, "print JSON lines")
	profile := flag.String("cpuprofile", "", "write our client's CPU profile of the last run to `file`")
	role := flag.String("role", "", "for the program's own use")
	endpoint := flag.String("endpoint", "", "for the program's own use")
	flag.Parse()
	if l.Rate <= 0 || l.Rounds < 1 || l.Tokens < 0 || l.Streams < 0 || *pairs < 1 {
		return errors.New("the load cannot be run: give a positive rate, rounds and pairs, and no negative counts")
	}
	l.First = 20e6
	switch *role {
	case "server":
		return serve(l)
	case "ours", "floor":
		return client(l, *role, *endpoint, *profile)
	}
	loads := []load{l}
	if l.Streams == 0 {
		loads = nil
		for _, usual := range []load{{Streams: 64, Rate: 50}, {Streams: 200, Rate: 100}, {Streams: 500, Rate: 50}, {Streams: 1000, Rate: 20}, {Streams: 5000, Rate: 4}} {
			usual.Rounds, usual.First, usual.Together, usual.Tokens = l.Rounds, l.First, l.Together, l.Tokens
			loads = append(loads, usual)
		}
	}
	if runtime.NumCPU() < 2 {
		return errors.New("only one core may be used: the server and the client need one each")
	}
	if !*asJSON {
		fmt.Println("Errors are |reported - true|, p50 / p99 / max, ms. Late is how far the server's writes were off their schedule,")
		fmt.Println("next request how long after its last token a stream asked again (parsing, writing and sending of requests included).")
		fmt.Printf("%-9s %-6s %8s %8s %8s  %-24s %-24s %-24s %-24s %15s %9s %9s\n", "load", "client", "us/event", "allocs", "peak MB", "TTFT error", "gap error", "server late", "next request", "run time, s", "coalesced", "unstamped")
	}
	for _, one := range loads {
		if one.Tokens == 0 {
			one.Tokens = max(2, int(2*one.Rate))
		}
		var ratios []float64
		for i := range *pairs {
			cpu := map[string]float64{}
			order := []string{"ours", "floor"}
			if i%2 == 1 {
				slices.Reverse(order)
			}
			for _, kind := range order {
				r, err := one.measure(kind, *profile)
				if err != nil {
					return fmt.Errorf("%s at %d streams of %v/s: %w", kind, one.Streams, one.Rate, err)
				}
				cpu[kind] = r.CPU
				if err := r.print(*asJSON); err != nil {
					return err
				}
			}
			ratios = append(ratios, cpu["ours"]/cpu["floor"])
		}
		if !*asJSON {
			slices.Sort(ratios)
			fmt.Printf("%-9s CPU, ours / floor: %.2f (of %d pairs: %.2f to %.2f)\n", "", ratios[len(ratios)/2], len(ratios), ratios[0], ratios[len(ratios)-1])
		}
	}
	return nil
}

func (r row) print(asJSON bool) error {
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	_, err := fmt.Printf("%-9s %-6s %8.2f %8.3f %8.1f  %-24v %-24v %-24v %-24v %7.3f/%7.3f %9d %9d\n", fmt.Sprintf("%dx%v", r.Streams, r.Rate), r.Client,
		r.CPU, r.Allocs, float64(r.Peak)/1e6, r.TTFT, r.Gap, r.Lateness, r.Next, float64(r.Wall)/1e9, float64(r.Ideal)/1e9, r.Coalesced, r.Unstamped)
	return err
}

// measure runs one client against a fresh server.
func (l load) measure(kind, profile string) (row, error) {
	cpus, err := cores()
	if err != nil {
		return row{}, err
	}
	srv, err := start(cpus[0], append(l.args(), "-role", "server"))
	if err != nil {
		return row{}, err
	}
	defer srv.stop()
	line, err := srv.out.ReadString('\n')
	if err != nil {
		return row{}, fmt.Errorf("the server did not start: %w", err)
	}
	args := append(l.args(), "-role", kind, "-endpoint", "http://127.0.0.1:"+strings.TrimSpace(line))
	if kind == "ours" && profile != "" {
		args = append(args, "-cpuprofile", profile)
	}
	cl, err := start(cpus[1], args)
	if err != nil {
		return row{}, err
	}
	defer cl.stop()
	var a account
	if err := gob.NewDecoder(cl.out).Decode(&a); err != nil {
		return row{}, fmt.Errorf("the client gave no account: %w", err)
	}
	srv.in.Close()
	var truth []served
	if err := gob.NewDecoder(srv.out).Decode(&truth); err != nil {
		return row{}, fmt.Errorf("the server gave no account: %w", err)
	}
	return l.judge(kind, a, truth)
}

// judge holds what a client reported against the truth.
func (l load) judge(kind string, a account, truth []served) (row, error) {
	known := map[int]served{}
	for _, s := range truth {
		known[s.ID] = s
	}
	if len(known) != len(a.Requests) || len(truth) != len(known) {
		return row{}, fmt.Errorf("%d requests were sent and %d answered (%d different)", len(a.Requests), len(truth), len(known))
	}
	var ttft, gap, late, next []int64
	for _, r := range a.Requests {
		s := known[r.ID]
		if len(r.Marks) != l.Tokens || len(s.Writes) != l.Tokens {
			return row{}, fmt.Errorf("request %d: %d tokens written, %d reported, %d asked", r.ID, len(s.Writes), len(r.Marks), l.Tokens)
		}
		ttft = append(ttft, abs((r.Marks[0]-r.Start)-(s.Writes[0]-s.Received)))
		for k, at := range s.Writes {
			late = append(late, at-(s.Received+l.First+int64(k)*l.interval()))
			if k > 0 {
				gap = append(gap, abs((r.Marks[k]-r.Marks[k-1])-(at-s.Writes[k-1])))
			}
		}
		if after, ok := known[r.ID+l.Streams]; ok { // of the same stream
			next = append(next, after.Received-s.Writes[l.Tokens-1])
		}
	}
	n := float64(l.events())
	return row{
		load: l, Client: kind, CPU: float64(a.CPU) / 1e3 / n, Allocs: float64(a.Allocs) / n, Peak: a.Peak,
		TTFT: spreadOf(ttft), Gap: spreadOf(gap), Lateness: spreadOf(late), Next: spreadOf(next),
		Wall: a.Wall, Ideal: l.ideal(), Coalesced: a.Coalesced, Unstamped: a.Unstamped, Clock: a.ClockUncertainty,
	}, nil
}

func abs(x int64) int64 { return max(x, -x) }

// cores returns the first and the last core that this process may use.
func cores() ([2]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return [2]int{}, fmt.Errorf("cannot tell which cores may be used: %w", err)
	}
	var all []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			all = append(all, i)
		}
	}
	return [2]int{all[0], all[len(all)-1]}, nil
}

// child is this program in another role.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// start runs this program on one core. A child has the affinity of the thread
// that forks it, and Go fits GOMAXPROCS to that.
func start(core int, args []string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot find this program: %w", err)
	}
	c := &child{cmd: exec.Command(self, args...)}
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var was, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		return nil, fmt.Errorf("cannot tell which cores may be used: %w", err)
	}
	one.Set(core)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return nil, fmt.Errorf("cannot pin to core %d: %w", core, err)
	}
	err = c.cmd.Start()
	return c, errors.Join(err, unix.SchedSetaffinity(0, &was))
}

func (c *child) stop() {
	c.in.Close()
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}
