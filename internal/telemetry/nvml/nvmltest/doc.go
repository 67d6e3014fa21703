// Package nvmltest makes go-nvml's mock machines answer like machines at work, for
// tests. Without cgo it is empty.
package nvmltest
