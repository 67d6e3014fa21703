package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nativebench/nativebench/internal/convert"
	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/hub"
	"github.com/nativebench/nativebench/internal/hub/hubtest"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/synth"
	"github.com/nativebench/nativebench/native"
)

const hubCommit = "abababababababababababababababababababab"

// TestDamagedSyntheticWeightsAreRefused: a file of the right size with one bit
// turned over is not measured.
func TestDamagedSyntheticWeightsAreRefused(t *testing.T) {
	engineDir := vocabulariesOnly(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	p := plan.Default()
	p.Models, p.Backends = []string{"gpt2"}, []string{"native"}
	s := &setup{known: testRegistry(), plan: p, engineDir: engineDir, weights: synthetic, dtype: "f16", layers: 1, width: 64}
	find := func() (*model, error) { return s.findModel(t.Context(), "gpt2", newLiveLine(io.Discard)) }
	m, err := find()
	if err != nil || len(m.file.SHA256) != 64 {
		t.Fatal(m, err)
	}
	if again, err := find(); err != nil || again.file.SHA256 != m.file.SHA256 {
		t.Fatal(again, err)
	}
	b, err := os.ReadFile(m.file.Path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-100] ^= 4
	if err := os.WriteFile(m.file.Path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	want := "the synthetic weights in " + filepath.Dir(m.file.Path) + " are damaged: delete that directory, it will be written again"
	if _, err := find(); err == nil || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
}

// fakeConverter makes an engine directory whose converter copies a GGUF file
// into place: the real one needs 2 GB of Python.
func fakeConverter(t *testing.T) (engineDir string) {
	t.Helper()
	dir := t.TempDir()
	writeGGUF(t, filepath.Join(dir, "made.gguf"), "gpt2", 1024, 64, true)
	script := "#!/bin/sh\nwhile [ $# -gt 1 ]; do\n\tif [ \"$1\" = --outfile ]; then cp '" + dir + "/made.gguf' \"$2\"; fi\n\tshift\ndone\n"
	for name, text := range map[string]string{"engine/convert/convert_hf_to_gguf.py": "", "engine/llama-quantize": "", "python/bin/python": script} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(pythonVariable(convertEnv), filepath.Join(dir, "python"))
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	return filepath.Join(dir, "engine")
}

// holding are the arguments of a small run of the backend that holds weights.
func holding(out, engineDir string, more ...string) []string {
	return small("holder", out, append([]string{"--engine-dir", engineDir, "--mode", "sync", "--format", "none"}, more...)...)
}

// compare has the weights that it lacks downloaded and converted, once, after it
// has said how large they are.
func TestCompareFetchesWhatIsMissing(t *testing.T) {
	h := hubOfGPT2(t)
	engineDir := fakeConverter(t)
	out := filepath.Join(t.TempDir(), "run")
	hubDir := filepath.Join(os.Getenv("HF_HOME"), "hub")

	code, stdout, stderr := invoke(t, holding(out, engineDir, "--dry-run")...)
	if code != exitOK || !strings.Contains(stdout, "gpt2/chat/sync/c1/holder/r0\n") ||
		!strings.HasPrefix(stderr, "not here yet, and made first: openai-community/gpt2 from the hub, 20 MiB, into "+hubDir+"; gpt2 as GGUF, 239 MiB, into ") {
		t.Errorf("dry run: status %d\n%s%s", code, stdout, stderr)
	}
	if code, _, stderr := invoke(t, holding(out, engineDir, "--dry-run", "--dtype", "q4_k_m")...); code != exitOK || !strings.Contains(stderr, "; gpt2 in F16 until it is quantized, 237 MiB, into ") || !strings.Contains(stderr, "; gpt2 as GGUF, 67 MiB, into ") {
		t.Errorf("dry run of Q4_K_M: status %d\n%s", code, stderr)
	}
	if _, err := os.Stat(hubDir); err == nil {
		t.Error("the dry run wrote into the hub's cache")
	}

	code, _, stderr = invoke(t, holding(out, engineDir)...)
	at := -1
	for _, part := range []string{
		"openai-community/gpt2, revision main: commit " + hubCommit + "\n", "3 files, 20 MiB to fetch into " + hubDir + "\n",
		"fetched and checked in ", "converting to F16: " + hubDir, "converted from " + hubDir, ": openai-community/gpt2, revision abababababab\n",
	} {
		next := strings.Index(stderr, part)
		if code != exitOK || next <= at {
			t.Fatalf("status %d: %s\nlacks, or has too early, %q", code, stderr, part)
		}
		at = next
	}
	m := readRun(t, out).Manifest.Models
	if len(m) != 1 || m[0].Source == nil || m[0].Source.HubID != "openai-community/gpt2" || m[0].Source.Revision != hubCommit || len(m[0].Source.Files) != 3 || m[0].HFPath != m[0].Source.Path {
		t.Errorf("models %+v", m)
	}

	h.Forget()
	for _, more := range [][]string{{}, {"--offline"}, {"--revision", hubCommit, "--weights", "hub"}} {
		code, _, stderr = invoke(t, holding(filepath.Join(t.TempDir(), "run"), engineDir, more...)...)
		if code != exitOK || strings.Contains(stderr, "fetch") || strings.Contains(stderr, "converting") {
			t.Errorf("again, %q: status %d\n%s", more, code, stderr)
		}
	}
	if seen := h.Requests(); len(seen) > 0 {
		t.Errorf("what is in the cache was asked for: %v", seen)
	}
	if code, _, stderr := invoke(t, "compare", "--resume", out, "--format", "none"); code != exitOK {
		t.Errorf("resumed: status %d\n%s", code, stderr)
	}
	if err := os.Remove(m[0].Path); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := invoke(t, "compare", "--resume", out); code != exitUsage || !strings.Contains(stderr, "make it again (nativebench models convert --type f16 "+m[0].Source.Path+")") {
		t.Errorf("resumed without its file: status %d\n%s", code, stderr)
	}
}

// Whatever keeps the weights away is refused in one line that says the ways
// round, and nothing is written. Random numbers never stand in unasked.
func TestWeightsThatCannotBeHad(t *testing.T) {
	ways := []string{"--weights synthetic", "--gguf FILE", "--hf-dir DIR", "nativebench models pull gpt2", "HF_HOME"}
	for _, c := range []struct {
		name string
		set  func(t *testing.T, h *hubtest.Hub, repo *hubtest.Repo)
		args []string
		says []string
	}{
		{"gated", func(_ *testing.T, _ *hubtest.Hub, repo *hubtest.Repo) { repo.Gated = "manual" }, nil, append(ways, "it is gated, and there is no token: accept its terms at {hub}/openai-community/gpt2", "HF_TOKEN")},
		{"gated, not accepted", func(t *testing.T, h *hubtest.Hub, repo *hubtest.Repo) {
			repo.Gated, h.Token = "auto", "hf_secret"
			t.Setenv("HF_TOKEN", "hf_secret")
		}, nil, append(ways, "the account of the token in HF_TOKEN has no access")},
		{"missing", func(_ *testing.T, h *hubtest.Hub, _ *hubtest.Repo) {
			h.Fault(false, "GET /api/models", -1, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.Header().Set("X-Error-Code", "RepoNotFound")
				w.WriteHeader(http.StatusNotFound)
			})
		}, nil, append(ways, "the hub has no such repository")},
		{"no such revision", nil, []string{"--revision", "v9"}, []string{`the repository has no revision "v9"`}},
		{"no network", func(t *testing.T, _ *hubtest.Hub, _ *hubtest.Repo) {
			t.Setenv("HF_ENDPOINT", "http://hub.invalid") // RFC 2606: no such name
			t.Setenv("HTTP_PROXY", "")
		}, nil, append(ways, "the weights of gpt2 are not here, and the hub does not give them", "the name hub.invalid cannot be resolved")},
		{"--offline", nil, []string{"--offline"}, append(ways, "--offline: the weights of gpt2 would have to be downloaded", "not in the cache {cache}")},
		{"offline by the environment", func(t *testing.T, _ *hubtest.Hub, _ *hubtest.Repo) { t.Setenv("HF_HUB_OFFLINE", "1") }, nil, append(ways, "HF_HUB_OFFLINE is set")},
		{"disk too small", func(_ *testing.T, h *hubtest.Hub, _ *hubtest.Repo) {
			h.Fault(false, "GET /api/models", -1, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				rec := httptest.NewRecorder()
				next.ServeHTTP(rec, r)
				var info map[string]any
				json.Unmarshal(rec.Body.Bytes(), &info)
				for _, s := range info["siblings"].([]any) {
					if s := s.(map[string]any); s["rfilename"] == "model.safetensors" {
						s["size"] = 1 << 50
						s["lfs"].(map[string]any)["size"] = 1 << 50
					}
				}
				json.NewEncoder(w).Encode(info)
			})
		}, nil, []string{"the disk of {cache} has ", " are needed (openai-community/gpt2 from the hub 1048576.0 GiB", "): make room, ", "HF_HUB_CACHE"}},
		{"no converter", func(t *testing.T, _ *hubtest.Hub, _ *hubtest.Repo) {
			t.Setenv(pythonVariable(convertEnv), "/nonexistent")
		}, nil, []string{"its Python environment /nonexistent is not there", "--gguf PATH, or --weights synthetic"}},
		{"not enough memory", nil, []string{"--model", "llama-2-7b-chat", "--ctx", "4096", "--concurrency", "4096"}, []string{"llama-2-7b-chat/chat/sync/c4096 cannot run: it needs about 8", " of memory (weights 12.6 GiB"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := hubOfGPT2(t)
			engineDir := fakeConverter(t)
			if c.set != nil {
				c.set(t, h, h.Repo("openai-community/gpt2"))
			}
			dir := t.TempDir()
			cache := filepath.Join(os.Getenv("HF_HOME"), "hub")
			code, stdout, stderr := invoke(t, holding(filepath.Join(dir, "run"), engineDir, c.args...)...)
			if code != exitUsage || stdout != "" || strings.Count(stderr, "\n") != 1 || strings.Contains(stderr, "hf_secret") {
				t.Errorf("status %d\n%s%s", code, stdout, stderr)
			}
			for _, part := range c.says {
				if part = strings.NewReplacer("{hub}", h.URL, "{cache}", cache).Replace(part); !strings.Contains(stderr, part) {
					t.Errorf("%s\nlacks %q", stderr, part)
				}
			}
			for _, dir := range []string{dir, cache, os.Getenv("XDG_CACHE_HOME")} {
				if left, _ := os.ReadDir(dir); len(left) > 0 {
					t.Errorf("something was written: %v", left)
				}
			}
		})
	}
}

// A download that ends in damage is no model: the run is not begun.
func TestDamagedDownloadIsNotMeasured(t *testing.T) {
	h := hubOfGPT2(t)
	engineDir := fakeConverter(t)
	h.Fault(true, "GET", -1, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		rec.Body.Bytes()[0] ^= 1
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes())
	})
	out := filepath.Join(t.TempDir(), "run")
	code, _, stderr := invoke(t, holding(out, engineDir)...)
	if code != exitError || !strings.Contains(stderr, "nativebench: the weights of gpt2: openai-community/gpt2: model.safetensors arrived damaged twice") {
		t.Errorf("status %d\n%s", code, stderr)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("there is a run directory")
	}
}

// Ctrl-C ends a download of compare's; the same command goes on there.
func TestCompareStopsAndGoesOn(t *testing.T) {
	h := hubOfGPT2(t)
	args := holding(filepath.Join(t.TempDir(), "run"), fakeConverter(t))
	var asked atomic.Int32
	h.Fault(true, "GET", -1, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if asked.Add(1) == 1 {
			next.ServeHTTP(w, r)
			return
		}
		<-r.Context().Done()
	})
	h.Repo("openai-community/gpt2").Files["model.safetensors"] = hubtest.Safetensors(70<<20, 1) // two requests
	h.Add("openai-community/gpt2", h.Repo("openai-community/gpt2"))
	cmd := program(t, nil, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "a second request for the weights", func() bool { return asked.Load() > 1 })
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || strings.Contains(stderr.String(), "requests in flight") || !strings.Contains(stderr.String(), "stopped; what has arrived is kept, the same command goes on there\n") {
		t.Fatalf("status %d: %s", code, stderr.String())
	}
	h.Forget()
	if code, _, stderr := invoke(t, args...); code != exitOK || !strings.Contains(stderr, "70 MiB") {
		t.Errorf("status %d\n%s", code, stderr)
	}
}

// Without a Python to make the converter's environment with, the script's own
// words and the ways round are the end of it; nothing was downloaded.
func TestConverterThatCannotBeMade(t *testing.T) {
	h := hubOfGPT2(t)
	engineDir := fakeConverter(t)
	t.Setenv(pythonVariable(convertEnv), "")
	t.Setenv("NATIVEBENCH_CACHE", filepath.Join(t.TempDir(), "cache"))
	t.Setenv("PYTHON", "/nonexistent")
	code, _, stderr := invoke(t, holding(filepath.Join(t.TempDir(), "run"), engineDir)...)
	for _, part := range []string{"making the Python environment of the converter to GGUF, once (2.0 GiB): ", "was not made: ", "no Python for convert with venv was found", "or give --gguf FILE, or --weights synthetic\n"} {
		if code != exitError || !strings.Contains(stderr, part) || strings.Count(stderr, "\n") != 2 {
			t.Errorf("status %d\n%s\nlacks %q", code, stderr, part)
		}
	}
	for _, r := range h.Requests() {
		if r.Storage {
			t.Errorf("%s was downloaded", r.Path)
		}
	}
	code, _, stderr = invoke(t, holding(filepath.Join(t.TempDir(), "run"), engineDir, "--offline")...)
	if code != exitUsage || strings.Contains(stderr, "making") {
		t.Errorf("--offline: status %d\n%s", code, stderr)
	}
}

// The whole way for real: a hub with small relatives, llama.cpp's own converter,
// the engine and its server.
func TestCompareFromTheHub(t *testing.T) {
	engineDir, python := os.Getenv(native.EnvDir), pythonDir(convertEnv)
	if err := convert.Available(engineDir, python); engineDir == "" || err != nil {
		t.Skipf("%s is not set, or there is no converter: %v", native.EnvDir, err)
	}
	if err := native.Available(engineDir); err != nil {
		t.Skip(err)
	}
	for key, of := range map[string]struct {
		repo  string
		width int
	}{"phi-2": {"microsoft/phi-2", 160}, "llama-2-7b-chat": {"meta-llama/Llama-2-7b-chat-hf", 256}} {
		t.Run(key, func(t *testing.T) {
			h := hubOfGPT2(t)
			t.Setenv(pythonVariable(convertEnv), python)
			t.Setenv("XDG_CACHE_HOME", t.TempDir())
			made, err := synth.Write(t.Context(), synth.Spec{Model: key, Seed: 1, Layers: 2, Width: of.width, VocabDir: filepath.Join(engineDir, "vocab")}, t.TempDir(), nil)
			if err != nil {
				t.Fatal(err)
			}
			repo := &hubtest.Repo{Commit: hubCommit, Files: map[string][]byte{}}
			for _, f := range made.Files {
				if name, ok := strings.CutPrefix(f.Path, "hf/"); ok {
					if repo.Files[name], err = os.ReadFile(filepath.Join(made.HFDir, name)); err != nil {
						t.Fatal(err)
					}
				}
			}
			h.Add(of.repo, repo)
			out := filepath.Join(t.TempDir(), "run")
			code, stdout, stderr := invoke(t, small("native,llama-server", out, "--model", key, "--max-tokens", "8", "--threads", "1", "--format", "terminal", "--engine-dir", engineDir)...)
			if code != exitOK || !strings.Contains(stderr, "to fetch into") || !strings.Contains(stderr, "verified  llama-server = native") {
				t.Fatalf("status %d\n%s%s", code, stdout, stderr)
			}
			m := readRun(t, out).Manifest.Models[0]
			if m.Source == nil || m.Source.HubID != of.repo || m.Source.Revision != hubCommit || !m.Synthetic || m.DType != "F16" {
				t.Errorf("model %+v", m)
			}
		})
	}
}

// Memory is looked at before synthetic weights are written, and what they take
// on the disk is known to the byte.
func TestSyntheticWeightsAreForeseen(t *testing.T) {
	engineDir := vocabulariesOnly(t)
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	args := holding(filepath.Join(t.TempDir(), "run"), engineDir, "--weights", "synthetic", "--model", "llama-2-7b-chat", "--ctx", "4096", "--concurrency", "4096")
	if code, _, stderr := invoke(t, args...); code != exitUsage || !strings.Contains(stderr, " of memory (weights 12.6 GiB") {
		t.Errorf("status %d\n%s", code, stderr)
	}
	if left, _ := os.ReadDir(cache); len(left) > 0 {
		t.Errorf("something was written: %v", left)
	}
	spec := synth.Spec{Model: "gpt2", DType: "f16", Seed: 1, Layers: 2, Width: 64, VocabDir: filepath.Join(engineDir, "vocab"), GGUFOnly: true}
	dir := filepath.Join(cache, "model")
	for _, step := range []bool{true, false} { // the GGUF file alone, then the directory, too
		spec.GGUFOnly = step
		need, err := spec.ToWrite(dir)
		if err != nil {
			t.Fatal(err)
		}
		had := int64(0)
		if r, err := synth.Open(dir); err == nil {
			for _, f := range r.Files {
				had += f.Bytes
			}
		}
		made, err := synth.Write(t.Context(), spec, dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		all := int64(0)
		for _, f := range made.Files {
			all += f.Bytes
		}
		if need == 0 || need != all-had {
			t.Errorf("%d bytes were foreseen, %d written", need, all-had)
		}
		if again, err := spec.ToWrite(dir); again != 0 || err != nil {
			t.Errorf("%d bytes of what is there, %v", again, err)
		}
	}
	foreseen, err := spec.Summary()
	if err != nil {
		t.Fatal(err)
	}
	made, err := synth.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := gguf.ReadFile(made.GGUF)
	if err != nil {
		t.Fatal(err)
	}
	if told, err := f.Summary(); err != nil || told != foreseen {
		t.Errorf("foreseen %+v, it is %+v, %v", foreseen, told, err)
	}
	for _, c := range []struct {
		needs []diskNeed
		says  string
	}{
		{nil, ""},
		{[]diskNeed{{"a", dir, 1, false}}, ""},
		{[]diskNeed{{"a", dir, 1 << 50, false}}, "1048576.0 GiB are needed (a 1048576.0 GiB)"},
		{[]diskNeed{{"a", dir, 1, false}, {"b", filepath.Join(dir, "not", "yet"), 1 << 50, false}}, "(a 1 bytes + b 1048576.0 GiB)"},
	} {
		if err := checkDisk(c.needs, "or else"); (err != nil) != (c.says != "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v", c.needs, err)
		}
	}
}

// What is made on the way to a quantized file is gone when the next model's is
// made: the disk needs room for one of them, beside all that stays.
func TestQuantizedModelsOneAfterAnother(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	s := &setup{weights: fromHub, dtype: "q4_k_m", models: map[string]*model{}}
	s.plan.Models = []string{"phi-2", "gpt2", "llama-2-7b-chat"}
	pulls := map[string]*hub.Plan{}
	stay, f16 := int64(0), map[string]int64{}
	for _, key := range s.plan.Models {
		m, err := s.foreseen(key)
		if err != nil {
			t.Fatal(err)
		}
		s.models[key] = m
		pulls[key] = &hub.Plan{Repo: m.HubID, Cache: filepath.Join(cache, "hub"), Files: []hub.PlannedFile{{Bytes: 1 << 30}}}
		f16[key] = 2 * m.shape.Params
		stay += 1<<30 + m.shape.TensorBytes
	}
	needs, err := s.diskNeeds(pulls)
	if err != nil {
		t.Fatal(err)
	}
	// The last is the largest: all that stays is there, and its F16.
	parts, most := atOnce(needs)
	if want := stay + f16["llama-2-7b-chat"]; most != want || len(parts) != 3+3+1 || sum(parts) != most {
		t.Errorf("%d bytes, want %d: %v", most, want, parts)
	}
	s.plan.Models = []string{"llama-2-7b-chat", "gpt2"} // the first is
	if needs, err = s.diskNeeds(pulls); err != nil {
		t.Fatal(err)
	}
	parts, most = atOnce(needs)
	if want := 2<<30 + f16["llama-2-7b-chat"] + s.models["llama-2-7b-chat"].shape.TensorBytes; most != want || len(parts) != 4 || sum(parts) != most {
		t.Errorf("%d bytes, want %d: %v", most, want, parts)
	}

	var room unix.Statfs_t
	if err := unix.Statfs(cache, &room); err != nil {
		t.Fatal(err)
	}
	part := int64(room.Bavail) * room.Bsize / 10
	fits := []diskNeed{{"a in F16", cache, 6 * part, true}, {"a", cache, part, false}, {"b in F16", cache, 6 * part, true}, {"b", cache, part, false}}
	if err := checkDisk(fits, "or else"); err != nil {
		t.Error(err)
	}
	fits[2].bytes = 20 * part
	want := fmt.Sprintf("%s are needed at once (a %s + b in F16 %s + b %s): make room, or else", amount(22*part), amount(part), amount(20*part), amount(part))
	if err := checkDisk(fits, "or else"); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

func sum(needs []diskNeed) (bytes int64) {
	for _, n := range needs {
		bytes += n.bytes
	}
	return bytes
}
