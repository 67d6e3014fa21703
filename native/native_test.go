package native

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestSourceHash catches what Go's build cache does not see: an edit of csrc
// after which this package still stands for the old sources.
func TestSourceHash(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("no bash")
	}
	out, err := exec.Command("bash", "../scripts/source-hash.sh").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != SourceHash {
		t.Errorf("csrc or the llama.cpp pin changed (%s) since native/source_hash.go was written (%s): run `make engine`", got, SourceHash)
	}
}

func TestDefaultDir(t *testing.T) {
	t.Setenv(EnvDir, "/some/where")
	if got := DefaultDir(); got != "/some/where" {
		t.Errorf("got %s", got)
	}
	os.Unsetenv(EnvDir)
	if got := DefaultDir(); !strings.HasSuffix(got, "/engine") {
		t.Errorf("got %s, want the folder engine beside the executable", got)
	}
}
