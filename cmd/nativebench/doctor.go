package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/convert"
	"github.com/nativebench/nativebench/internal/hub"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/telemetry"
	"github.com/nativebench/nativebench/internal/telemetry/nvml"
	"github.com/nativebench/nativebench/native"
)

// verdict is how a check ended.
type verdict string

const (
	verdictOK      verdict = "ok"
	verdictWarn    verdict = "warn"
	verdictMissing verdict = "missing"
)

// diagnosis is what one check found.
type diagnosis struct {
	Group   string  `json:"group"`
	Name    string  `json:"name"`
	Verdict verdict `json:"verdict"`
	Found   string  `json:"found"`          // what there is, or is not
	Cost    string  `json:"cost,omitempty"` // what that costs, and what to do
	Needed  bool    `json:"needed"`         // without it the main job, compare, cannot be done
}

// doctorReport is what --json prints.
type doctorReport struct {
	Ready   bool              `json:"ready"` // nothing that is needed is missing
	Checks  []diagnosis       `json:"checks"`
	Machine telemetry.Machine `json:"machine"`
	GPUs    []nvml.Device     `json:"gpus,omitempty"`
}

// patient is what the checks look at.
type patient struct {
	machine   telemetry.Machine
	engineDir string
	cacheDir  string // "" if there is none
	outDir    string // where runs go by default
	root      string // of the file system; tests have their own
}

// doctorCheck is one row of the table.
type doctorCheck struct {
	group, name string
	needed      bool
	look        func(p patient) (v verdict, found, cost string)
}

// doctorChecks is the table: a check is added as a row. The backends' rows come
// from their own registry.
func doctorChecks(known registry) []doctorCheck {
	checks := []doctorCheck{
		{"machine", "system", false, lookSystem},
		{"machine", "cores", false, lookCores},
		{"machine", "frequency", false, lookFrequency},
		{"machine", "heat", false, lookHeat},
		{"machine", "other work", false, lookBusy},
		{"machine", "memory", true, lookMemory},
		{"machine", "swap", false, lookSwap},
		{"machine", "clock", false, lookClock},
	}
	for _, b := range known {
		if b.server != nil && b.server.Program == "" {
			continue // only at an --endpoint: nothing of it is here
		}
		checks = append(checks, doctorCheck{"engine", b.name, b.server == nil || b.server.Python == "", lookBackend(b)})
	}
	return append(checks,
		doctorCheck{"engine", "docker", false, lookDocker},
		doctorCheck{"engine", "vocabularies", false, lookVocabularies},
		doctorCheck{"engine", "hub", false, lookHub},
		doctorCheck{"engine", "converter", false, lookConverter},
		doctorCheck{"engine", "gpu", false, lookGPU},
		doctorCheck{"engine", "llama-bench", false, lookLlamaBench},
		doctorCheck{"files", "cache", true, lookCache},
		doctorCheck{"files", "runs", false, lookRuns},
		doctorCheck{"limits", "loopback", true, lookLoopback},
		doctorCheck{"limits", "open files", false, lookOpenFiles},
	)
}

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "what this machine has, what is missing, and what each missing thing costs",
		Description: "Checks the machine, the engine, the cache and the limits of this process; it changes\n" +
			"nothing and takes about a second. Exit status 1 if something is missing that\n" +
			"\"nativebench compare\" needs.\n\n" +
			"Examples:\n" +
			"   nativebench doctor\n" +
			"   nativebench doctor --engine-dir ~/engine\n" +
			"   nativebench doctor --json | jq '.checks[] | select(.verdict != \"ok\")'",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "engine-dir", Usage: "`DIR` of the engine library and llama-server", DefaultText: "$NATIVEBENCH_ENGINE_DIR, or engine/ beside this program"},
			&cli.BoolFlag{Name: "json", Usage: "print everything as JSON"},
		},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			p := patient{machine: telemetry.Inspect(), engineDir: c.String("engine-dir"), outDir: ".", root: "/"}
			if p.engineDir == "" {
				p.engineDir = native.DefaultDir()
			}
			p.cacheDir, _ = os.UserCacheDir() // lookCache says that there is none
			gpus := findGPUs()
			r := diagnose(p, append(doctorChecks(backends()), gpuChecks(gpus)...))
			r.GPUs = gpus.all
			if err := printDoctor(c.App.Writer, r, c.Bool("json")); err != nil {
				return err
			}
			if !r.Ready {
				return exitStatus(exitError)
			}
			return nil
		},
	}
}

func diagnose(p patient, checks []doctorCheck) doctorReport {
	r := doctorReport{Ready: true, Machine: p.machine}
	for _, c := range checks {
		v, found, cost := c.look(p)
		r.Checks = append(r.Checks, diagnosis{Group: c.group, Name: c.name, Verdict: v, Found: found, Cost: cost, Needed: c.needed})
		if c.needed && v == verdictMissing {
			r.Ready = false
		}
	}
	return r
}

func lookSystem(p patient) (verdict, string, string) {
	m := p.machine
	found := m.OS + ", kernel " + m.Kernel
	switch {
	case m.Container == "":
		return verdictOK, found + ", on bare metal as far as one can see", ""
	case strings.Contains(m.Container, "virtual machine"):
		return verdictOK, found + ", " + m.Container, "the hypervisor may give the cores to others for a while, which shows as outliers"
	}
	return verdictOK, found + ", " + m.Container, ""
}

func lookCores(p patient) (verdict, string, string) {
	m := p.machine
	found := fmt.Sprintf("%s: %d usable", m.CPU, m.Cores)
	if m.PhysicalCores > 0 && m.LogicalCores > 0 {
		found += fmt.Sprintf(" of %d (%d physical)", m.LogicalCores, m.PhysicalCores)
	}
	if m.NUMANodes > 1 {
		found += fmt.Sprintf(", %d NUMA nodes", m.NUMANodes)
	}
	if w := telemetry.CoresWarning(m); w != "" {
		return verdictWarn, found, w
	}
	return verdictOK, found, ""
}

func lookFrequency(p patient) (verdict, string, string) {
	m := p.machine
	if strings.HasPrefix(m.Governor, "not known") {
		return verdictOK, "governor " + m.Governor, "whether the frequency follows the load cannot be told"
	}
	found := "governor " + m.Governor
	if m.MaxMHz > 0 {
		found += fmt.Sprintf(", %.0f to %.0f MHz", max(0, m.MinMHz), m.MaxMHz)
	}
	if !strings.HasPrefix(m.Turbo, "not known") {
		found += ", turbo " + m.Turbo
	}
	if w := telemetry.GovernorWarning(m.Governor); w != "" {
		return verdictWarn, found, w
	}
	return verdictOK, found, ""
}

func lookHeat(p patient) (verdict, string, string) {
	m := p.machine
	switch {
	case m.Throttled > 0:
		return verdictWarn, fmt.Sprintf("throttled by heat now: %d times in half a second", m.Throttled), "numbers fall while it lasts: let the machine cool down, or give --cooldown"
	case m.ThrottleEvents < 0:
		return verdictOK, "not known: the kernel does not count thermal throttling here", ""
	}
	return verdictOK, fmt.Sprintf("not throttled now (%d times since the start of the machine)", m.ThrottleEvents), ""
}

func lookBusy(p patient) (verdict, string, string) {
	m := p.machine
	if m.LoadBefore < 0 {
		return verdictWarn, "not known: the machine's CPU times cannot be read", "a busy machine would not be noticed"
	}
	found := fmt.Sprintf("%.2f cores busy with other work", m.LoadBefore)
	if w := telemetry.BusyWarning(m.LoadBefore, m.Cores); w != "" {
		return verdictWarn, found, "numbers are slower and vary more than on a quiet machine: end the other work first"
	}
	return verdictOK, found, ""
}

// leastMemory is what the smallest model (GPT-2, 16-bit) takes in two engines
// with their caches and buffers, with room to spare.
const leastMemory = 1 << 30

func lookMemory(p patient) (verdict, string, string) {
	m := p.machine.Memory
	if m.TotalBytes < 0 {
		return verdictWarn, "not known: /proc/meminfo cannot be read", "whether a model fits cannot be checked before it is loaded"
	}
	found := fmt.Sprintf("%s free of %s", gib(m.AvailableBytes), gib(m.TotalBytes))
	if m.LimitBytes > 0 {
		found += " (the limit of the control group)"
	}
	if m.AvailableBytes < leastMemory {
		return verdictMissing, found, "even the smallest model needs 1 GiB: free some"
	}
	return verdictOK, found, ""
}

func lookSwap(p patient) (verdict, string, string) {
	m := p.machine.Memory
	if m.SwapTotalBytes <= 0 {
		return verdictOK, "none", ""
	}
	found := fmt.Sprintf("%s used of %s", gib(m.SwapUsedBytes), gib(m.SwapTotalBytes))
	if w := telemetry.SwapWarning(m); w != "" {
		return verdictWarn, found, w
	}
	return verdictOK, found, ""
}

// coarseClock is from where on the clock's error would show in the gap between
// two tokens of a small model (about 2 ms).
const coarseClock = 20_000 // ns

func lookClock(p patient) (verdict, string, string) {
	u := bench.ClockUncertainty()
	found := fmt.Sprintf("CLOCK_MONOTONIC, known to %d ns", u)
	if b, err := os.ReadFile(filepath.Join(p.root, "sys/devices/system/clocksource/clocksource0/current_clocksource")); err == nil {
		found += ", from " + strings.TrimSpace(string(b))
	}
	if u > coarseClock {
		return verdictWarn, found, "stamps of the engine and of the client may lie that far apart"
	}
	return verdictOK, found, ""
}

// lookBackend asks a row of the registry whether it can work here.
func lookBackend(b backend) func(patient) (verdict, string, string) {
	return func(p patient) (verdict, string, string) {
		err := b.check(p.engineDir)
		switch {
		case err == nil && b.name == "native":
			if about, err := native.Describe(p.engineDir); err == nil {
				return verdictOK, about.Engine + ", " + about.Build, ""
			}
			return verdictOK, b.about, ""
		case err == nil:
			return verdictOK, b.about, ""
		case errors.Is(err, native.ErrLeftOut):
			return verdictMissing, oneLine(err), "the local baseline is left out: only servers can be measured"
		case b.name == "native":
			return verdictMissing, oneLine(err), "without it there is no local baseline to compare with"
		}
		if b.server != nil && b.server.Python != "" {
			return verdictMissing, oneLine(err), "without it this server cannot be started here"
		}
		return verdictMissing, oneLine(err), "without it compare has no served side"
	}
}

func lookDocker(patient) (verdict, string, string) {
	if err := dockerAnswers("a server"); err != nil {
		return verdictMissing, "no docker engine answers", "--launch docker, for vllm and tgi, cannot be used"
	}
	return verdictOK, "a docker engine answers: --launch docker can be used", ""
}

func lookVocabularies(p patient) (verdict, string, string) {
	dir := filepath.Join(p.engineDir, "vocab")
	entries, err := os.ReadDir(dir)
	n := 0
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "ggml-vocab-") && strings.HasSuffix(e.Name(), ".gguf") {
			n++
		}
	}
	if n == 0 {
		why := "holds none"
		if errors.Is(err, fs.ErrNotExist) {
			why = "does not exist"
		}
		return verdictMissing, dir + " " + why, "--weights synthetic needs a real vocabulary: `make engine` fetches them; other --weights work without"
	}
	return verdictOK, fmt.Sprintf("%d in %s", n, dir), ""
}

// hubPatience is how long the hub may take to answer at all.
const hubPatience = 5 * time.Second

// lookHub looks for models in the hub's cache, and whether others could be
// downloaded.
func lookHub(patient) (verdict, string, string) {
	var here []string
	for _, m := range plan.Models() {
		if list, err := hub.List(m.HubID); err == nil && len(list) > 0 {
			here = append(here, m.Key)
		}
	}
	cache, err := hub.CacheDir()
	if err != nil {
		return verdictMissing, oneLine(err), "models of the hub have no place: set HF_HOME"
	}
	found := fmt.Sprintf("in %s: %s", cache, cmp.Or(strings.Join(here, ", "), "no model"))
	cost := "compare measures what is there only; others with --weights synthetic, --gguf FILE or --hf-dir DIR"
	if hub.Forbidden() {
		return verdictWarn, found + "; HF_HUB_OFFLINE forbids downloads", cost
	}
	client, err := hub.NewClient()
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), hubPatience)
		defer cancel()
		err = client.Ping(ctx)
	}
	if err != nil {
		return verdictMissing, found + "; " + oneLine(err), cost
	}
	return verdictOK, found + "; others can be downloaded", ""
}

func lookConverter(p patient) (verdict, string, string) {
	dir := pythonDir(convertEnv)
	if err := convert.Available(p.engineDir, dir); err != nil {
		if errors.Is(err, convert.ErrNoPython) && os.Getenv(pythonVariable(convertEnv)) == "" {
			return verdictWarn, oneLine(err), "compare makes it when it first converts weights; without a network they cannot be converted to GGUF here"
		}
		return verdictMissing, oneLine(err), "weights of the hub and Hugging Face directories cannot be converted to GGUF here"
	}
	return verdictOK, "llama.cpp's, in " + dir, ""
}

// lookGPU looks for NVIDIA GPUs in /proc, so that no driver library is needed
// to say that there is none.
func lookGPU(p patient) (verdict, string, string) {
	gpus, _ := filepath.Glob(filepath.Join(p.root, "proc/driver/nvidia/gpus/*/information"))
	var names []string
	for _, path := range gpus {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if key, value, ok := strings.Cut(line, ":"); ok && key == "Model" {
				names = append(names, strings.TrimSpace(value))
			}
		}
	}
	if len(names) == 0 {
		return verdictMissing, "no NVIDIA GPU that the kernel's driver knows", "models run on the CPU; GPU memory, power and energy are not measured"
	}
	found := strings.Join(names, ", ")
	if plugins, _ := filepath.Glob(filepath.Join(p.engineDir, "libggml-cuda*.so")); len(plugins) == 0 {
		return verdictWarn, found + "; the engine directory has no CUDA plugin", "models run on the CPU although there is a GPU"
	}
	return verdictOK, found, ""
}

func lookLlamaBench(p patient) (verdict, string, string) {
	path := filepath.Join(p.engineDir, "llama-bench")
	if st, err := os.Stat(path); err != nil || st.Mode()&0o111 == 0 {
		return verdictMissing, "no program llama-bench in " + p.engineDir, "the engine's own speed cannot be held against llama.cpp's (`make speed`); compare does not need it"
	}
	return verdictOK, path, ""
}

// cacheNeed is what the smallest model's synthetic weights take.
const cacheNeed = 512 << 20

func lookCache(p patient) (verdict, string, string) {
	if p.cacheDir == "" {
		return verdictMissing, "no cache directory: neither XDG_CACHE_HOME nor HOME is set", "weights have no place: set one of them"
	}
	free, err := freeSpace(p.cacheDir)
	if err != nil {
		return verdictMissing, oneLine(err), "weights have no place: set XDG_CACHE_HOME to a directory that can be written"
	}
	found := fmt.Sprintf("%s: %s free", p.cacheDir, gib(free))
	if free < cacheNeed {
		return verdictMissing, found, "synthetic weights of the smallest model need 0.5 GiB: free some, or set XDG_CACHE_HOME elsewhere"
	}
	return verdictOK, found, ""
}

// runNeed is room for a long run: about 4 MB per 100,000 tokens.
const runNeed = 100 << 20

func lookRuns(p patient) (verdict, string, string) {
	dir, err := filepath.Abs(p.outDir)
	if err != nil {
		dir = p.outDir
	}
	free, err := freeSpace(dir)
	if err != nil {
		return verdictWarn, oneLine(err), "runs cannot be kept here: give --out elsewhere"
	}
	found := fmt.Sprintf("%s: %s free", dir, gib(free))
	if free < runNeed {
		return verdictWarn, found, "a long run may fill it (what was measured until then stays intact): give --out elsewhere"
	}
	return verdictOK, found, ""
}

// freeSpace is what this user may still write, in bytes, below the nearest
// directory of the path that exists.
func freeSpace(dir string) (int64, error) {
	for {
		_, err := os.Stat(dir)
		if err == nil {
			break
		}
		if parent := filepath.Dir(dir); errors.Is(err, fs.ErrNotExist) && parent != dir {
			dir = parent
			continue
		}
		return 0, err
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return 0, fmt.Errorf("%s cannot be written to: %w", dir, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("%s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

func lookLoopback(patient) (verdict, string, string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return verdictMissing, "127.0.0.1 takes no server: " + oneLine(err), "no server can be started here"
	}
	l.Close()
	return verdictOK, "127.0.0.1 takes servers", ""
}

// filesNeed is enough for 500 connections and everything else.
const filesNeed = 1024

func lookOpenFiles(patient) (verdict, string, string) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return verdictOK, "not known: " + err.Error(), ""
	}
	found := fmt.Sprintf("%d at once", r.Cur)
	if r.Cur < filesNeed {
		return verdictWarn, found, "high --concurrency runs out of connections: ulimit -n 4096"
	}
	return verdictOK, found, ""
}

// doctorWidth bounds the lines of the report, in columns.
const doctorWidth = 100

func printDoctor(w io.Writer, r doctorReport, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	_, err := io.WriteString(w, renderDoctor(r, wantsColor(w)))
	return err
}

// wantsColor says whether w is a terminal whose user has not declined colour
// (https://no-color.org).
func wantsColor(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

// renderDoctor lays the report out: group, then per check the verdict, the
// name, what was found and beneath it what that costs.
func renderDoctor(r doctorReport, color bool) string {
	names := 0
	for _, c := range r.Checks {
		names = max(names, len(c.Name))
	}
	indent := strings.Repeat(" ", 2+len(verdictMissing)+2+names+2)
	var b strings.Builder
	group := ""
	for _, c := range r.Checks {
		if c.Group != group {
			if group != "" {
				b.WriteByte('\n')
			}
			group = c.Group
			b.WriteString(group + "\n")
		}
		word := paintVerdict(c, fmt.Sprintf("%-*s", len(verdictMissing), c.Verdict), color)
		fmt.Fprintf(&b, "  %s  %-*s  ", word, names, c.Name)
		lines := wrapWords(c.Found, doctorWidth-len(indent))
		if c.Cost != "" {
			lines = append(lines, wrapWords("→ "+c.Cost, doctorWidth-len(indent))...)
		}
		b.WriteString(strings.Join(lines, "\n"+indent) + "\n")
	}
	b.WriteByte('\n')
	if r.Ready {
		b.WriteString("Ready: nativebench compare" + weightsHere(r) + "\n")
		return b.String()
	}
	var missing []string
	for _, c := range r.Checks {
		if c.Needed && c.Verdict == verdictMissing {
			missing = append(missing, c.Name)
		}
	}
	for i, line := range wrapWords("Not ready for compare: "+strings.Join(missing, ", ")+" missing; the lines above say what to do", doctorWidth) {
		if i > 0 {
			b.WriteString("  ")
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// weightsHere is the flag that compare needs where it can have no model's own
// weights.
func weightsHere(r doctorReport) string {
	for _, c := range r.Checks {
		if c.Name == "hub" && c.Verdict != verdictOK && strings.Contains(c.Found, "no model") {
			return " --weights synthetic"
		}
	}
	return ""
}

// wrapWords breaks a text at spaces; a word longer than a line, such as a path,
// stays whole so that it can be copied.
func wrapWords(s string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(s) {
		switch {
		case line == "":
			line = word
		case text.StringWidthWithoutEscSequences(line+" "+word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}

// paintVerdict colours a verdict: red is for what stands in compare's way.
func paintVerdict(d diagnosis, s string, color bool) string {
	if !color {
		return s
	}
	c := text.FgYellow
	switch {
	case d.Verdict == verdictOK:
		c = text.FgGreen
	case d.Verdict == verdictMissing && d.Needed:
		c = text.FgRed
	}
	return c.EscapeSeq() + s + text.Reset.EscapeSeq()
}
