// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !darwin

package simulator

import (
	"errors"
	"net"
	"os"
)

// errPlatform: processes share a simulated host by locks that only Linux and macOS have
// in this form.
var errPlatform = errors.New("the simulator runs on Linux and macOS")

func tryLock(*os.File, bool) error { return errPlatform }

func waitLock(*os.File) error { return errPlatform }

func unlock(f *os.File) { f.Close() }

func fileKey(info os.FileInfo) string { return info.Name() }

func datagramSocket(*os.File) error { return errPlatform }

func pair() (net.Conn, net.Conn, error) { return nil, nil, errPlatform }
