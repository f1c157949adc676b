// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
)

// parseArguments reads what macOS's sysctl kern.procargs2 gives: the number of
// arguments as a little-endian 32-bit integer, the program's path, zeros up to a
// word's boundary, then arguments and environment, each ended by a zero
// (sysctl(3), xnu's kern_sysctl.c). It is here and not in a darwin file to be tested.
func parseArguments(raw []byte) (executable string, args []string, err error) {
	bad := errors.New("kern.procargs2: cannot be read")
	if len(raw) < 4 {
		return "", nil, bad
	}
	count := binary.LittleEndian.Uint32(raw)
	path, rest, ok := bytes.Cut(raw[4:], []byte{0})
	if !ok || len(path) == 0 {
		return "", nil, bad
	}
	rest = bytes.TrimLeft(rest, "\x00")
	for range count {
		arg, after, ok := bytes.Cut(rest, []byte{0})
		if !ok {
			return "", nil, bad
		}
		args, rest = append(args, string(arg)), after
	}
	return string(path), args, nil
}

// speaksOf tells whether a process of program, or of any when it is empty, has one of dirs
// among its arguments. It is here and not in a darwin file to be tested.
func speaksOf(executable string, args, dirs []string, program string) bool {
	return (program == "" || executable == program) &&
		slices.ContainsFunc(dirs, func(dir string) bool { return slices.Contains(args, dir) })
}
