// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package machinedir

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// ListenUnix makes dir/name a listening socket and returns it for a child to
// inherit. So the socket is there before QEMU is: whoever connects waits in the
// kernel's queue, nobody has to poll, and if QEMU dies the connection ends.
func ListenUnix(dir, name string) (*os.File, error) {
	var file *os.File
	err := withShortPath(dir, name, func(path string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return err
		}
		defer l.Close()
		l.SetUnlinkOnClose(false)
		// Whoever connects commands the machine. Its folder keeps others out, and the process's
		// umask; the socket does not rely on either.
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
		file, err = l.File()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", filepath.Join(dir, name), NoSpace(err))
	}
	return file, nil
}

// DialUnix connects to the socket dir/name.
func DialUnix(ctx context.Context, dir, name string) (*net.UnixConn, error) {
	var conn net.Conn
	err := withShortPath(dir, name, func(path string) error {
		var d net.Dialer
		var err error
		conn, err = d.DialContext(ctx, "unix", path)
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}
