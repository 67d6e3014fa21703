package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	psnet "github.com/shirou/gopsutil/v3/net"
	"github.com/shirou/gopsutil/v3/process"

	"github.com/nativebench/nativebench/httpbackends"
	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/launch"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/runner"
	"github.com/nativebench/nativebench/internal/telemetry"
	"github.com/nativebench/nativebench/native"
	"github.com/nativebench/nativebench/scripts"
)

// readyTimeout bounds the start of a server, unless --ready-timeout says
// otherwise: vLLM compiles for a minute and more before it answers.
const readyTimeout = 10 * time.Minute

// attachTimeout bounds one try to get a token of a server that runs already.
const attachTimeout = 2 * time.Minute

// pythonVar names, with a Python environment's name appended in capitals, the
// variable that holds another directory of it.
const pythonVar = "NATIVEBENCH_PYTHON_"

// serverBackend is a server of that row: one that runs already, if the plan has
// an endpoint for it, or one that is started here, kept while cells use it, and
// stopped at the end.
func serverBackend(row httpbackends.Server) backend {
	about := fmt.Sprintf("%s behind its HTTP server, of the same build", row.Engine)
	switch {
	case row.Program == "":
		about = fmt.Sprintf("%s that runs already, at --endpoint %s=URL", row.Engine, row.Name)
		if row.Image != "" {
			about += "; or started by --launch docker"
		}
	case row.Python != "":
		about = fmt.Sprintf("%s; made ready by `scripts/python-env.sh %s`", row.Engine, row.Python)
	}
	return backend{
		name:         row.Name,
		about:        about,
		holdsWeights: row.Program != "",
		server:       &row,
		profiles:     row.Profile.Start != "",
		check:        func(engineDir string) error { _, err := programOf(row, engineDir); return err },
		ready: func(ctx context.Context, p place) (*seat, error) {
			if p.endpoint != "" {
				return attach(ctx, row, p)
			}
			return launchServer(ctx, row, p)
		},
		open: func(ctx context.Context, spec json.RawMessage, _ runner.Opening) (bench.Backend, error) {
			var at serverSpec
			if err := json.Unmarshal(spec, &at); err != nil {
				return nil, err
			}
			return httpbackends.Open(ctx, at.config(row))
		},
	}
}

// serverSpec is what the process of a cell must know of a server. It holds no
// secret: a key is read from the environment.
type serverSpec struct {
	Endpoint    string           `json:"endpoint"`
	Model       string           `json:"model,omitempty"` // name to ask for; "": what the server has
	Weights     string           `json:"weights,omitempty"`
	Synthetic   bool             `json:"synthetic,omitempty"`
	Launched    bool             `json:"launched,omitempty"`
	Chat        bool             `json:"chat,omitempty"`
	PrefixCache bool             `json:"prefix_cache,omitempty"`
	Insecure    bool             `json:"insecure,omitempty"`
	Context     int              `json:"context,omitempty"`
	TokenIDs    bool             `json:"token_ids,omitempty"`    // see httpbackends.Config; not for measuring
	Samplings   []bench.Sampling `json:"samplings,omitempty"`    // see httpbackends.Config
	KeyVariable string           `json:"key_variable,omitempty"` // environment variable with the API key
	Version     string           `json:"version,omitempty"`      // by the metadata of its Python environment
	Build       string           `json:"build,omitempty"`        // likewise
}

func (s serverSpec) config(row httpbackends.Server) httpbackends.Config {
	return httpbackends.Config{
		Server: row, Endpoint: s.Endpoint, Model: s.Model, Weights: s.Weights, Synthetic: s.Synthetic,
		Launched: s.Launched, Chat: s.Chat, PrefixCache: s.PrefixCache, Insecure: s.Insecure, Context: s.Context, TokenIDs: s.TokenIDs, Samplings: s.Samplings,
		APIKey:  os.Getenv(s.KeyVariable), // of "" there is none
		Version: s.Version, Build: s.Build,
	}
}

// attach makes a seat at a server that runs already, if it can generate.
func attach(ctx context.Context, row httpbackends.Server, p place) (*seat, error) {
	spec := serverSpec{
		Endpoint: p.endpoint, Model: p.servedModel, Chat: p.chat, PrefixCache: p.prefixCache,
		Insecure: p.insecure, KeyVariable: p.keyVariable, Context: p.context, Samplings: p.samplings,
	}
	info, err := awaitToken(ctx, spec.config(row), p)
	if err != nil {
		return nil, err
	}
	metrics, err := metricsOf(spec.config(row))
	if err != nil {
		return nil, err
	}
	at := &seat{
		spec:    spec,
		entry:   results.Backend{Info: info, Endpoint: p.endpoint},
		metrics: metrics,
		generates: func(ctx context.Context) error {
			_, err := oneToken(ctx, spec.config(row))
			return err
		},
	}
	at.find(row)
	return at, nil
}

// awaitToken gets a token of a server that runs already; one that is busy, with
// loading its model for example, is waited for.
func awaitToken(ctx context.Context, cfg httpbackends.Config, p place) (bench.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, p.wait)
	defer cancel()
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		limited, cancel := context.WithTimeout(ctx, attachTimeout)
		info, err := oneToken(limited, cfg)
		cancel()
		if bench.ClassOf(err) != bench.Busy {
			return info, err
		}
		p.say(fmt.Sprintf("waiting for %s (%s)", cfg.Server.Name, oneLine(err)))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return info, fmt.Errorf("%w: waited %s for it: see its log, or raise --ready-timeout", err, p.wait)
		}
	}
}

// soundsLike tells whether a server's name of its model holds that of m.
func soundsLike(served string, m plan.Model) bool {
	plain := func(name string) string {
		return strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
				return r
			}
			return -1
		}, strings.ToLower(name))
	}
	served = plain(served)
	return strings.Contains(served, plain(m.Key)) || strings.Contains(served, plain(path.Base(m.HubID)))
}

// find looks for the process of a server that runs already, so that its memory
// is measured and its work not taken for somebody else's. On this machine only
// what is recognisably a server of the row counts: what listens may as well
// hand the requests on (ssh, docker, a proxy).
func (at *seat) find(row httpbackends.Server) {
	at.pids = func() []int { return nil }
	if at.elsewhere = !here(at.entry.Endpoint); at.elsewhere {
		return
	}
	at.hidden = true
	why := "which process listens there is not told to this user"
	for _, pid := range listeners(at.entry.Endpoint) {
		root, what := serverProcess(pid, row)
		if root == 0 {
			why = fmt.Sprintf("what listens there, process %d (%s), is not recognisably %s itself", pid, what, row.Name)
			continue
		}
		at.hidden = false
		at.pids = func() []int { return []int{root} }
		at.notes = append(at.notes, fmt.Sprintf("memory and CPU time are those of process %d (%s), which listens there, and of its descendants", root, what))
		return
	}
	at.notes = append(at.notes, "its memory is not known, nor whether anything else used this machine: "+why)
}

// serverProcess is the process of a row's server of which pid is one: itself or
// the farthest of its ancestors in an unbroken line that are recognisably that;
// 0: it is none. what is its program.
func serverProcess(pid int, row httpbackends.Server) (root int, what string) {
	what = "?"
	for pid > 1 {
		p, err := process.NewProcess(int32(pid))
		if err != nil {
			break
		}
		argv, err := p.CmdlineSlice()
		if err != nil || len(argv) == 0 {
			break
		}
		if root == 0 {
			what = filepath.Base(argv[0])
		}
		if !row.IsProcess(argv) {
			break
		}
		root, what = pid, filepath.Base(argv[0])
		parent, err := p.Ppid()
		if err != nil {
			break
		}
		pid = int(parent)
	}
	return root, what
}

// listeners are the processes that listen at an endpoint of this machine; none
// where the kernel does not tell (a server of another user).
func listeners(endpoint string) (pids []int) {
	u, err := url.Parse(endpoint)
	if err == nil {
		port := u.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
		}
		sockets, err := psnet.Connections("tcp")
		for _, c := range sockets {
			if err == nil && c.Status == "LISTEN" && strconv.Itoa(int(c.Laddr.Port)) == port && c.Pid > 0 && !slices.Contains(pids, int(c.Pid)) {
				pids = append(pids, int(c.Pid))
			}
		}
	}
	return pids
}

// here tells whether an endpoint is on this machine.
func here(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	if u.Hostname() == "localhost" || ip != nil && ip.IsLoopback() {
		return true
	}
	own, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(own, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && ip != nil && n.IP.Equal(ip)
	})
}

// launchServer starts a server and waits until it has made a token.
func launchServer(ctx context.Context, row httpbackends.Server, p place) (*seat, error) {
	inContainer := p.docker && row.Image != ""
	var bin string
	var err error
	if !inContainer {
		if bin, err = programOf(row, p.engineDir); err != nil {
			return nil, err
		}
	}
	e := p.engine
	start := httpbackends.Start{
		Bin: bin, Model: p.weights.Path, Name: p.model.Key, PrefixCache: p.prefixCache,
		Slots: p.slots, Context: p.context, Batch: e.Batch, UBatch: e.UBatch, PrefillChunk: e.PrefillChunk,
		Threads: e.Threads, BatchThreads: e.BatchThreads, GPULayers: e.GPULayers,
		FlashAttn: e.FlashAttn, CacheType: e.CacheType, Profile: p.profile != nil,
	}
	settings := p.settings()
	var notes []string
	if row.Weights == httpbackends.HuggingFace {
		start.Model, settings = p.weights.HFPath, nil // the row's command line says what it is given
		if start.Script, err = transformersScript(); err != nil {
			return nil, err
		}
		if !hasGPU() {
			start.GPULayers, start.DType = 0, cpuType
		}
	}
	spec := serverSpec{
		Model: p.model.Key, Weights: start.Model, Synthetic: p.weights.Synthetic, Launched: true,
		Chat: p.chat, PrefixCache: p.prefixCache, Context: p.context, Samplings: p.samplings,
	}
	if row.Distribution != "" && !inContainer {
		spec.Version, spec.Build = distribution(pythonDir(row.Python), row.Distribution), distribution(pythonDir(row.Python), "torch")
		if spec.Build != "" {
			spec.Build = "torch " + spec.Build
		}
	}
	if row.NamedByPath {
		spec.Model = "" // whatever it is called
	}
	if p.profile != nil {
		notes = append(notes, "started by the profiler and with "+row.Profile.Wants)
	}
	var argv []string
	how := launch.Spec{
		Name: row.Name, LogPath: p.log, Health: row.Health, ReadyTimeout: p.wait,
		Argv: func(port int) ([]string, error) {
			start.Port = port
			if argv, err = row.Argv(start); err == nil && p.profile != nil {
				argv, err = p.profile(argv)
			}
			return argv, err
		},
		Ready: func(ctx context.Context, endpoint string) error {
			spec.Endpoint = endpoint
			_, err := oneToken(ctx, spec.config(row))
			return err
		},
	}
	if inContainer {
		if err := contain(&how, row, start, &argv); err != nil {
			return nil, err
		}
		if err := pull(ctx, row.Image, p.log, p.say); err != nil {
			return nil, err
		}
	} else if row.Environ != nil {
		how.Env = row.Environ(start, os.Environ())
		if let := letThrough(how.Env, row.EnvPrefix); len(let) > 0 {
			notes = append(notes, "started with these variables of the environment: "+strings.Join(let, " "))
		}
	}
	if p.profile != nil {
		how.Grace = profileServerEnding
	}
	server, err := launch.Start(ctx, how)
	if err != nil {
		return nil, err
	}
	metrics, err := metricsOf(spec.config(row))
	if err != nil {
		return nil, errors.Join(err, server.Stop(ctx))
	}
	kvPool, kvElement := 0, 2
	if row.KVPool != nil {
		kvPool = row.KVPool(start)
	}
	if start.DType == cpuType || start.DType == "" && strings.EqualFold(p.weights.DType, "f32") && row.Weights == httpbackends.HuggingFace {
		kvElement = 4 // "auto": as it computes
	}
	return &seat{
		spec:      spec,
		kvPool:    kvPool,
		kvElement: kvElement,
		metrics:   metrics,
		notes:     notes,
		entry: results.Backend{
			Command: argv, Endpoint: server.Endpoint(), Log: p.log,
			StartNS: server.StartToReady().Nanoseconds(), Settings: settings,
		},
		pids:    server.Root,
		died:    server.Done(),
		exit:    server.Exit,
		lastLog: server.LastLog,
		stop:    server.Stop,
	}, nil
}

// metricsOf asks a server about itself; nil where it does not tell.
func metricsOf(cfg httpbackends.Config) (telemetry.Probe, error) {
	scraper, err := httpbackends.NewScraper(cfg)
	if scraper == nil || err != nil {
		return nil, err // not a probe that is a nil pointer
	}
	return scraper, nil
}

// oneToken asks a server for one token: a health route may answer long before
// the model does.
func oneToken(ctx context.Context, cfg httpbackends.Config) (info bench.Info, err error) {
	b, err := httpbackends.Open(ctx, cfg)
	if err != nil {
		return info, err
	}
	defer b.Close()
	info = b.Info()
	s, err := b.NewSession(bench.Limits{PromptBytes: 16, PromptTokens: 16, OutputTokens: 1})
	if err != nil {
		return info, err
	}
	defer s.Close()
	const hello = "Hello"
	req := &bench.Request{Prompt: hello, Message: hello, Sampling: bench.Sampling{TopP: 1, MaxTokens: 1, Seed: 1}}
	if err := s.Prepare(req); err != nil {
		return info, err
	}
	if err := s.Generate(ctx, bench.NewTrace(1)); err != nil && bench.ClassOf(err) != bench.Empty {
		// Empty: the one token was end-of-sequence, or a part of a character.
		return info, fmt.Errorf("%s at %s answers, but makes no token: %w", cfg.Server.Name, cfg.Endpoint, err)
	}
	return info, nil
}

// letThrough are the variables with that prefix, in order, that this process
// has and env has as well.
func letThrough(env []string, prefix string) (list []string) {
	if prefix == "" {
		return nil
	}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, prefix) && slices.Contains(env, kv) {
			list = append(list, kv)
		}
	}
	slices.Sort(list)
	return list
}

// distribution is the version of a package in a Python environment, by the name
// of its metadata directory (PyPA, recording installed projects); "" if it is
// not there, or there twice.
func distribution(env, name string) string {
	found, _ := filepath.Glob(filepath.Join(env, "lib", "python3*", "site-packages", name+"-*.dist-info"))
	if len(found) != 1 {
		return ""
	}
	return strings.TrimSuffix(strings.TrimPrefix(filepath.Base(found[0]), name+"-"), ".dist-info")
}

// cpuType is in what servers of Hugging Face weights compute on a CPU: many
// have no fast kernels for f16 there.
const cpuType = "f32"

// gpuDevices are the files of NVIDIA's GPUs; a test has others.
var gpuDevices = "/dev/nvidia[0-9]*"

// hasGPU tells whether there is an NVIDIA GPU for PyTorch to find.
func hasGPU() bool {
	found, _ := filepath.Glob(gpuDevices)
	return len(found) > 0
}

// programOf finds the program of a row. $PATH is not searched: a server of
// another build would be compared.
func programOf(row httpbackends.Server, engineDir string) (string, error) {
	dir, advice := engineDir, fmt.Sprintf("run `make engine` to build it, set %s to its folder", native.EnvDir)
	switch {
	case row.Program == "" && row.Image != "":
		return "", fmt.Errorf("%s is started in a container only: give --launch docker, or --endpoint %s=URL of one that runs, or choose other --backends", row.Name, row.Name)
	case row.Program == "":
		return "", fmt.Errorf("%s is not started by nativebench: give --endpoint %s=URL of one that runs, or choose other --backends", row.Name, row.Name)
	case row.Python != "":
		dir = pythonDir(row.Python)
		advice = fmt.Sprintf("run `scripts/python-env.sh %s` to make that Python environment, set %s to another's folder, give --endpoint %s=URL of one that runs", row.Python, pythonVariable(row.Python), row.Name)
		dir = filepath.Join(dir, "bin")
	}
	path := filepath.Join(dir, row.Program)
	if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
		return path, nil
	}
	return "", fmt.Errorf("%s: no program %s in %s: %s, or choose other --backends", row.Name, row.Program, dir, advice)
}

func pythonVariable(env string) string { return pythonVar + strings.ToUpper(env) }

// pythonDir is where scripts/python-env.sh keeps an environment.
func pythonDir(env string) string {
	if dir := os.Getenv(pythonVariable(env)); dir != "" {
		return dir
	}
	root := os.Getenv("NATIVEBENCH_CACHE")
	if root == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return filepath.Join("python", env) // which is not there: the refusal says what to do
		}
		root = filepath.Join(cache, "nativebench")
	}
	return filepath.Join(root, "python", env)
}

// transformersScript writes our Transformers server into the cache and returns
// its path, which is another for another version of it.
func transformersScript() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("the Transformers server needs a cache directory: %w; set XDG_CACHE_HOME", err)
	}
	sum := sha256.Sum256(scripts.TransformersServer)
	dir := filepath.Join(cache, "nativebench", "scripts")
	path := filepath.Join(dir, "transformers_server-"+hex.EncodeToString(sum[:6])+".py")
	if have, err := os.ReadFile(path); err == nil && slices.Equal(have, scripts.TransformersServer) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("the Transformers server: %w", err)
	}
	temp, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return "", fmt.Errorf("the Transformers server: %w", err)
	}
	_, err = temp.Write(scripts.TransformersServer)
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("the Transformers server: %w", err), os.Remove(temp.Name()))
	}
	return path, nil
}
