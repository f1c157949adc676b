// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// makePrivate makes a folder for its owner alone. One that is there and open to others is
// closed to them when it is a node's or empty; of any other it is not for us to decide.
func makePrivate(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil || info.IsDir() && info.Mode().Perm()&0o077 == 0 {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no folder: name another one", dir)
	}
	ours, err := isOurs(dir)
	if err == nil && ours {
		err = os.Chmod(dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("%s is open to others (mode %#o), and is to hold the memory of machines: chmod 700 it as its owner (%w)", dir, info.Mode().Perm(), err)
	}
	if !ours {
		return fmt.Errorf("%s is open to others (mode %#o) and has files that are no node's: name a folder of its own, or chmod 700 it", dir, info.Mode().Perm())
	}
	return nil
}

// isOurs tells whether a folder is a node's, or nothing is in it.
func isOurs(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	names, err := f.Readdirnames(100) // a node's own has a dozen
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return name == "lost+found" }) // a file system of its own
	return len(names) == 0 || slices.Contains(names, ".lock") || slices.Contains(names, "images"), nil
}
