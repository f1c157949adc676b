// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package pressure

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Signals that thresholds are about, in the kubelet's words.
const (
	SignalMemory = "memory.available"
	SignalDisk   = "nodefs.available"
)

// why other signals of the kubelet are no thresholds for ending pods.
var spared = map[string]string{
	"imagefs.available":  "pods write nothing where images are; --min-free-disk keeps pulls from filling it",
	"nodefs.inodesFree":  "pods take no inodes of the host; a shortage is shown as DiskPressure",
	"imagefs.inodesFree": "pods take no inodes of the host; a shortage is shown as DiskPressure",
	"pid.available":      "pods take no processes of the host; a shortage is shown as PIDPressure",
}

// ParseThresholds reads thresholds as the kubelet's flags have them:
// memory.available<100Mi,nodefs.available<5%.
func ParseThresholds(text string) (map[string]Amount, error) {
	out := map[string]Amount{}
	var errs []error
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		signal, value, ok := strings.Cut(part, "<")
		if !ok {
			errs = append(errs, fmt.Errorf("%q: want SIGNAL<QUANTITY, such as %s<1Gi", part, SignalDisk))
			continue
		}
		amount, err := parseAmount(value)
		switch _, twice := out[signal]; {
		case spared[signal] != "":
			err = fmt.Errorf("%s: no threshold of this node: %s", signal, spared[signal])
		case signal != SignalMemory && signal != SignalDisk:
			err = fmt.Errorf("%q is no signal: want %s or %s", signal, SignalMemory, SignalDisk)
		case twice:
			err = fmt.Errorf("%s is given twice", signal)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out[signal] = amount
	}
	return out, errors.Join(errs...)
}

func parseAmount(text string) (Amount, error) {
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		p, err := strconv.ParseFloat(percent, 64)
		if err != nil || !(p >= 0 && p <= 100) {
			return Amount{}, fmt.Errorf("%q: want 0%% to 100%%", text)
		}
		return Amount{Percent: p}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return Amount{}, fmt.Errorf("%q: want a size such as 1Gi, or a part such as 5%%", text)
	}
	return Amount{Bytes: q.Value()}, nil
}

// ParseGrace reads how long soft thresholds may be passed: memory.available=1m30s.
func ParseGrace(texts map[string]string, soft map[string]Amount) (map[string]time.Duration, error) {
	out := map[string]time.Duration{}
	var errs []error
	for signal, text := range texts {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			errs = append(errs, fmt.Errorf("%s=%s: want a time such as 1m30s", signal, text))
			continue
		}
		if _, ok := soft[signal]; !ok {
			errs = append(errs, fmt.Errorf("%s has no soft threshold", signal))
			continue
		}
		out[signal] = d
	}
	for signal := range soft {
		if _, ok := texts[signal]; !ok {
			errs = append(errs, fmt.Errorf("the soft threshold of %s has no grace period", signal))
		}
	}
	return out, errors.Join(errs...)
}
