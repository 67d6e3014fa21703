//go:build cgo && linux

package native

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tokenizing says that this process is the one that only tokenizes, by the engine
// in that directory.
const tokenizing = "NATIVEBENCH_TEST_TOKENIZING"

// A process that only tokenizes, as the one that measures does, loads no plugin of
// a GPU: that makes a context there, of half a GB. The process that computes does.
func TestTokenizingTouchesNoGPU(t *testing.T) {
	if dir := os.Getenv(tokenizing); dir != "" {
		tokenizesAlone(t, dir)
		return
	}
	model := tiny(t)
	dir := t.TempDir()
	plugin, out := filepath.Join(dir, "libggml-cuda.so"), filepath.Join(dir, "touched")
	if text, err := exec.Command("cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", plugin, "testdata/device_plugin.c").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	libs, err := filepath.Glob(filepath.Join(os.Getenv(EnvDir), "lib*"))
	if err != nil || len(libs) == 0 {
		t.Fatalf("no engine in %s: %v", os.Getenv(EnvDir), err)
	}
	for _, lib := range libs {
		if name := filepath.Base(lib); !strings.HasPrefix(name, "libggml-cuda") {
			if err := os.Symlink(lib, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestTokenizingTouchesNoGPU$")
	cmd.Env = append(os.Environ(), tokenizing+"="+dir, "NATIVEBENCH_TEST_MODEL="+model, "DEVICE_PLUGIN_OUT="+out, "LD_LIBRARY_PATH="+dir)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

func tokenizesAlone(t *testing.T, dir string) {
	touched := func() bool { _, err := os.Stat(os.Getenv("DEVICE_PLUGIN_OUT")); return err == nil }
	v, err := OpenVocab(dir, os.Getenv("NATIVEBENCH_TEST_MODEL"))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	before, err := v.Tokenize("Hello world, this is a test.")
	if err != nil || len(before) == 0 {
		t.Fatal(before, err)
	}
	if touched() {
		t.Fatal("tokenizing loaded the GPU's plugin")
	}
	if err := Begin(dir); err != nil {
		t.Fatal(err)
	}
	if !touched() {
		t.Error("Begin did not load the GPU's plugin")
	}
	if err := Begin(dir); err != nil { // what is there already
		t.Error(err)
	}
	if after, err := v.Tokenize("Hello world, this is a test."); err != nil || len(after) != len(before) {
		t.Errorf("%v after Begin, %v before (%v)", after, before, err)
	}
}
