// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package darwin

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// parseVMStat reads vm_stat(1): the bytes that programs can have without another's loss.
// They are free, or hold what was read ahead (speculative) or not used for long (inactive).
func parseVMStat(text string) (int64, error) {
	head, rest, _ := strings.Cut(text, "\n")
	_, size, ok := strings.Cut(head, "page size of ")
	if !ok {
		return 0, fmt.Errorf("vm_stat printed %.80q", head)
	}
	size, _, _ = strings.Cut(size, " ")
	page, err := strconv.ParseInt(size, 10, 64)
	if err != nil || page <= 0 {
		return 0, fmt.Errorf("vm_stat printed %.80q", head)
	}
	var pages int64
	found := 0
	for line := range strings.Lines(rest) {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "Pages free", "Pages inactive", "Pages speculative":
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), "."), 10, 64)
			if err != nil || n < 0 {
				return 0, fmt.Errorf("vm_stat printed %.80q", line)
			}
			pages += n
			found++
		}
	}
	if found != 3 {
		return 0, errors.New("vm_stat did not print free, inactive and speculative pages")
	}
	return pages * page, nil
}
