package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const top = "../.."

// asMain makes the test binary the program itself.
const asMain = "NATIVEBENCH_TEST_CHECK_DOCKERFILE"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(top, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func dockerfile(t *testing.T, path string) []instruction {
	t.Helper()
	steps, err := parse(read(t, path))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return steps
}

func TestParse(t *testing.T) {
	got, err := parse("# syntax\nFROM a AS b\n\nrun --mount=type=cache x \\\n  # why\n  y\nLABEL a=\"b c\" \\\n d=e")
	if err != nil {
		t.Fatal(err)
	}
	want := []instruction{{2, "FROM", "a AS b"}, {4, "RUN", "--mount=type=cache x y"}, {7, "LABEL", `a="b c" d=e`}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(instruction{})); diff != "" {
		t.Error(diff)
	}
	opts, rest := flags(got[1].text)
	if !slices.Equal(opts, []string{"--mount=type=cache"}) || rest != "x y" {
		t.Errorf("flags: %q, %q", opts, rest)
	}
	if w := words(got[2].text); !slices.Equal(w, []string{"a=b c", "d=e"}) {
		t.Errorf("words: %q", w)
	}
	for _, bad := range []string{"RUN a \\", "RUN <<EOF\nx\nEOF"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q was understood", bad)
		}
	}
	if s, err := expand("${A}:$B", map[string]string{"A": "1", "B": "2"}); s != "1:2" || err != nil {
		t.Errorf("expand: %q, %v", s, err)
	}
	if _, err := expand("${A:-x}", map[string]string{"A": "1"}); err == nil {
		t.Error("expand took a form that it does not know")
	}
}

// The RUN lines call our scripts and nothing else: what an image is made with can
// be read, linted and run without a container engine.
func TestRunLinesCallOurScripts(t *testing.T) {
	call := regexp.MustCompile(`^scripts/[a-z-]+\.sh( [a-z]+| \$\{[A-Z_]+\})*$`)
	for _, path := range []string{"Dockerfile", "Dockerfile.cuda"} {
		copied, runs := "", 0
		for _, in := range dockerfile(t, path) {
			switch in.name {
			case "FROM":
				copied = ""
			case "COPY":
				copied += " " + in.text + " "
			case "RUN":
				runs++
				_, line := flags(in.text)
				if !call.MatchString(line) {
					t.Errorf("%s, line %d: RUN %s: not a plain call of a script of ours", path, in.line, line)
					continue
				}
				script := strings.Fields(line)[0]
				if st, err := os.Stat(filepath.Join(top, script)); err != nil || st.Mode()&0o111 == 0 {
					t.Errorf("%s, line %d: %s cannot be run: %v", path, in.line, script, err)
				}
			}
		}
		if runs == 0 || copied == "" {
			t.Errorf("%s: %d RUN lines; the last stage copies %q", path, runs, copied)
		}
	}
}

// Both images are made alike, and are what they say.
func TestImages(t *testing.T) {
	base := map[string]*regexp.Regexp{
		"Dockerfile":      regexp.MustCompile(`^debian:trixie-slim$`),
		"Dockerfile.cuda": regexp.MustCompile(`^nvidia/cuda:11\.8\.0-(devel|runtime)-ubuntu22\.04@sha256:[0-9a-f]{64}$`),
	}
	var shape [2][]string
	for i, path := range []string{"Dockerfile", "Dockerfile.cuda"} {
		var stages []string
		args := map[string]string{}
		user, health, entry := "", "", ""
		for _, in := range dockerfile(t, path) {
			switch in.name {
			case "ARG":
				name, value, _ := strings.Cut(in.text, "=")
				args[name] = strings.Trim(value, `"`)
				if len(stages) == 0 && !base[path].MatchString(value) {
					t.Errorf("%s: base image %s", path, value)
				}
			case "FROM":
				stages = append(stages, strings.Fields(in.text)[2])
			case "USER":
				user = in.text
			case "HEALTHCHECK":
				_, health = flags(in.text)
			case "ENTRYPOINT":
				entry = in.text
			case "LABEL":
				if path == "Dockerfile.cuda" && !strings.Contains(in.text, `base.name="docker.io/`+strings.Split(args["CUDA_RUNTIME"], "@")[0]+`"`) {
					t.Errorf("%s: its label names another base than %s", path, args["CUDA_RUNTIME"])
				}
			case "COPY", "RUN":
				shape[i] = append(shape[i], in.name+" "+in.text)
			}
		}
		if !slices.Equal(stages, []string{"build", "engine", "full"}) {
			t.Errorf("%s: stages %q", path, stages)
		}
		if user != "1000:1000" {
			t.Errorf("%s: runs as %q", path, user)
		}
		if health != `CMD ["nativebench", "doctor"]` || entry != `["nativebench"]` {
			t.Errorf("%s: health check %q, entry point %q", path, health, entry)
		}
		if path == "Dockerfile.cuda" && (args["CUDA_ARCHS"] != "80;86;89;90" || args["PYTHON_ENV"] != "transformers-4.36-cu118") {
			t.Errorf("%s: CUDA_ARCHS=%q, PYTHON_ENV=%q", path, args["CUDA_ARCHS"], args["PYTHON_ENV"])
		}
	}
	if diff := cmp.Diff(shape[0], shape[1]); diff != "" {
		t.Error("the two Dockerfiles do different things:", diff)
	}
}

// The Go in the images is one that go.mod takes, and the source of the pins of
// the build is one.
func TestGoPin(t *testing.T) {
	pin := read(t, "scripts/go-pin.sh")
	version := regexp.MustCompile(`(?m)^GO_VERSION=(1\.\d+)\.\d+$`).FindStringSubmatch(pin)
	needs := regexp.MustCompile(`(?m)^go (1\.\d+)\.\d+$`).FindStringSubmatch(read(t, "go.mod"))
	if version == nil || needs == nil || version[1] != needs[1] {
		t.Errorf("Go of the images %q, of go.mod %q", version, needs)
	}
	if n := len(regexp.MustCompile(`(?m)^GO_SHA256_(amd64|arm64)=[0-9a-f]{64}$`).FindAllString(pin, -1)); n != 2 {
		t.Errorf("%d hashes of Go's archives", n)
	}
}

// What is fetched in the place of Go is refused unless it is what was pinned.
func TestOtherGoIsRefused(t *testing.T) {
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Skip("not on Debian or Ubuntu: ", err)
	}
	version := regexp.MustCompile(`(?m)^GO_VERSION=(.*)$`).FindStringSubmatch(read(t, "scripts/go-pin.sh"))[1]
	mirror, cache, prefix := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "prefix")
	for _, arch := range []string{"amd64", "arm64"} {
		if err := os.WriteFile(filepath.Join(mirror, "go"+version+".linux-"+arch+".tar.gz"), []byte("something else"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(url string) string {
		cmd := exec.Command(filepath.Join(top, "scripts/image.sh"), "program")
		cmd.Env = append(os.Environ(), "NATIVEBENCH_CACHE="+cache, "PREFIX="+prefix, "GO_URL="+url)
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("%s: no error", url)
		}
		return string(out)
	}
	if said := run("file://" + mirror); !strings.Contains(said, "is not what was pinned (SHA-256 ") {
		t.Errorf("another archive: %s", said)
	}
	if said := run("file://" + mirror + "/none"); !strings.Contains(said, "--build-arg GO_URL=URL") {
		t.Errorf("no archive: %s", said)
	}
	if _, err := os.Stat(prefix); err == nil {
		t.Error("something was installed")
	}
}

// The environment for CUDA 11.8 is the one that was tested, but for PyTorch's
// own build.
func TestCu118Lock(t *testing.T) {
	pins := func(name string) []string {
		var all []string
		for line := range strings.Lines(read(t, "scripts/python/"+name)) {
			line = strings.TrimSpace(line)
			if line != "" && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "nvidia-") && !strings.HasPrefix(line, "--extra-index-url ") {
				all = append(all, strings.TrimSuffix(line, "+cu118"))
			}
		}
		return all
	}
	for _, end := range []string{".in", ".txt"} {
		if diff := cmp.Diff(pins("transformers-4.36"+end), pins("transformers-4.36-cu118"+end)); diff != "" {
			t.Errorf("transformers-4.36-cu118%s is of other packages:\n%s", end, diff)
		}
		if text := read(t, "scripts/python/transformers-4.36-cu118"+end); !strings.Contains(text, "\ntorch==2.1.0+cu118\n") || !strings.Contains(text, "\n--extra-index-url https://download.pytorch.org/whl/cu118\n") {
			t.Errorf("transformers-4.36-cu118%s does not take PyTorch for CUDA 11.8 from PyTorch's index", end)
		}
	}
}

// TestSteps runs a Dockerfile in roots made of this machine's own directories.
func TestSteps(t *testing.T) {
	if err := exec.Command("unshare", "--mount", "true").Run(); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and mount namespaces: ", err)
	}
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("src/scripts/make.sh", "#!/bin/sh\necho $WHAT >made; cat /cache/kept >>made; id -u >>made\n", 0o755)
	write("src/secret", "x", 0o644)
	write("src/.dockerignore", "secret\n", 0o644)
	write("cache/c/kept", "kept\n", 0o644)
	write("root/etc/passwd", "root:x:0:0:::/bin/sh\nsomebody:x:1000:1000::/home/somebody:/bin/sh\n", 0o644)
	write("src/Dockerfile", `ARG BASE=none
FROM ${BASE} AS first
ARG WHAT=nothing
WORKDIR /w
COPY . .
RUN --mount=type=cache,id=c,target=/cache scripts/make.sh
FROM first AS second
COPY --from=first /w/made /copied/
ENV PATH=/w/scripts:${PATH}
USER 1000:1000
HEALTHCHECK --interval=1s CMD ["cat", "made"]
CMD ["ls", "/copied"]
`, 0o644)
	for _, d := range []string{"usr", "bin", "lib", "lib64", "sbin"} {
		if err := os.MkdirAll(filepath.Join(dir, "root", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(asMain, "1")
	git := exec.Command("git", "init", "-q")
	git.Dir = filepath.Join(dir, "src")
	if out, err := git.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	run := func(args ...string) (string, error) {
		args = append([]string{
			"--mount", "--propagation", "private", binary, "-base", "img=" + filepath.Join(dir, "root"), "-work", filepath.Join(dir, "work"), "-cache", filepath.Join(dir, "cache"),
			"-bind", "/usr:/usr", "-bind", "/bin:/bin", "-bind", "/lib:/lib", "-bind", "/lib64:/lib64",
		}, args...)
		out, err := exec.Command("unshare", args...).CombinedOutput()
		return string(out), err
	}
	out, err := run("-arg", "BASE=img@sha256:0", "-arg", "WHAT=something", "-then", "echo $HOME; id -u", filepath.Join(dir, "src/Dockerfile"))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"| first | `RUN scripts/make.sh` | ok |", "`HEALTHCHECK cat made, as 1000:1000` | ok |", "`ENTRYPOINT + CMD ls /copied, as 1000:1000` | ok |", "second: layers of "} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
	for name, want := range map[string]string{"second-then-0.log": "something\nkept\n0\n", "second-then-1.log": "made\n", "second-then-2.log": "/home/somebody\n1000\n"} {
		if got, err := os.ReadFile(filepath.Join(dir, "work", name)); string(got) != want {
			t.Errorf("%s: %q, want %q (%v)", name, got, want, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "work/first/layers/w/secret")); err == nil {
		t.Error("COPY took what .dockerignore names")
	}
	out, err = run("-arg", "BASE=other", filepath.Join(dir, "src/Dockerfile"))
	if err == nil || !strings.Contains(out, "nothing stands in for other") {
		t.Errorf("an unknown base: %v\n%s", err, out)
	}
	write("src/scripts/make.sh", "#!/bin/sh\necho oh no; exit 3\n", 0o755)
	out, err = run("-arg", "BASE=img", filepath.Join(dir, "src/Dockerfile"))
	if err == nil || !strings.Contains(out, "line 6: RUN: /bin/sh -c scripts/make.sh: exit status 3") || !strings.Contains(out, "oh no") || !strings.Contains(out, "| exit status 3 |") {
		t.Errorf("a step that fails: %v\n%s", err, out)
	}
}
