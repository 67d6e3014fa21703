//go:build !cgo

package nvml

import "errors"

// Open says that this program cannot see GPUs.
func Open() (*Library, error) { return nil, errors.New("not available: built without cgo") }
