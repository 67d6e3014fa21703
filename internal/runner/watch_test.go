package runner

import (
	"strings"
	"testing"
)

// Time that the hypervisor took away slows a cell as other programs do.
func TestBusyWarningCountsSteal(t *testing.T) {
	for _, tt := range []struct {
		other, steal float64
		want         string // "": no warning
	}{
		{0.1, 0, ""},
		{-1, -1, ""},
		{0.3, -1, "busy machine: other programs used 0.3 of its 4 cores meanwhile"},
		{0, 0.4, "the hypervisor gave 0.4 cores of them to other machines"},
		{0.15, 0.15, "busy machine: other programs used"},
	} {
		got := busyWarning(tt.other, tt.steal, 4)
		if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
			t.Errorf("other %v, steal %v: %q, want %q", tt.other, tt.steal, got, tt.want)
		}
	}
}
