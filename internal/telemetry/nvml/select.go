package nvml

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Variables by which CUDA chooses its devices:
// https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables
const (
	visibleVar = "CUDA_VISIBLE_DEVICES"
	orderVar   = "CUDA_DEVICE_ORDER"
)

// Visible returns the devices that CUDA programs started with this process's
// environment find, in their order: the first is CUDA0. A GPU under MIG is seen
// as its first part. Notes say what may be otherwise.
func (l *Library) Visible() (list []Device, notes []string) {
	value, set := os.LookupEnv(visibleVar)
	return l.visible(value, set, os.Getenv(orderVar))
}

func (l *Library) visible(value string, set bool, order string) (list []Device, notes []string) {
	var whole []Device // as CUDA counts them: without parts
	for _, d := range l.devices {
		if !isPart(d) {
			whole = append(whole, d)
		}
	}
	name := func(d Device) string { return d.Name }
	if same := len(slices.CompactFunc(slices.Clone(whole), func(a, b Device) bool { return name(a) == name(b) })) <= 1; !same && order != "PCI_BUS_ID" {
		notes = append(notes, fmt.Sprintf("the GPUs differ and CUDA numbers them fastest first, the driver by PCI address: which one a number means is not certain; set %s=PCI_BUS_ID", orderVar))
	}
	if !set {
		for _, d := range whole {
			list = append(list, l.firstPart(d))
		}
		return firstMIG(list), notes
	}
	// CUDA stops at the first entry that it does not know.
	for entry := range strings.SplitSeq(value, ",") {
		entry = strings.TrimSpace(entry)
		i, err := strconv.Atoi(entry)
		switch {
		case err == nil && i >= 0 && i < len(whole):
			list = append(list, l.firstPart(whole[i]))
			continue
		case err != nil && entry != "":
			if found := l.byUUID(entry); found != nil {
				list = append(list, l.firstPart(*found))
				continue
			}
		}
		if entry != "" && entry != "-1" && entry != "none" && entry != "void" && entry != "NoDevFiles" {
			notes = append(notes, fmt.Sprintf("%s=%s: there is no GPU %q here, so CUDA uses none from there on", visibleVar, value, entry))
		}
		break
	}
	return firstMIG(list), notes
}

// firstMIG keeps of devices among which are parts only the first of these: CUDA
// finds no more than one part.
func firstMIG(list []Device) []Device {
	if i := slices.IndexFunc(list, isPart); i >= 0 {
		return list[i : i+1]
	}
	return list
}

// byUUID finds a device by its UUID or the beginning of it that tells it from
// all others.
func (l *Library) byUUID(uuid string) *Device {
	var found *Device
	for i, d := range l.devices {
		if strings.HasPrefix(d.UUID, uuid) {
			if found != nil {
				return nil
			}
			found = &l.devices[i]
		}
	}
	return found
}

func isPart(d Device) bool { return strings.Contains(d.Subject, ".") }

// firstPart is the device, or where MIG has cut it up its first part.
func (l *Library) firstPart(d Device) Device {
	if isPart(d) || d.MIG != "on" {
		return d
	}
	for _, p := range l.devices {
		if isPart(p) && p.Index == d.Index {
			return p
		}
	}
	return d
}
