// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// Ports are drawn from below the range that systems hand out for outgoing connections (from 32768 on
	// Linux), so that none of those takes the port between our look and the API server's.
	firstPort = 16000
	lastPort  = 31999
	// samePortPatience: the API server of an `up` that was just killed may still hold its port.
	samePortPatience = 2 * time.Second
)

// readPort returns the port the directory's API server had last, or fs.ErrNotExist.
func readPort(l Layout) (int, error) {
	data, err := os.ReadFile(l.Port())
	if err != nil {
		return 0, fmt.Errorf("read the API server's port: %w", err)
	}
	port, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || port < 1 || port > 65535 {
		return 0, fmt.Errorf("read the API server's port: %s holds %q; delete it", l.Port(), data)
	}
	return port, nil
}

// choosePort returns the wanted port; for 0 the one in the port file, if it is free, else any free one.
func choosePort(l Layout, wanted int) (int, error) {
	if wanted != 0 {
		if err := portFree(wanted); err != nil {
			return 0, fmt.Errorf("port %d for the API server: %w", wanted, err)
		}
		return wanted, nil
	}
	if last, err := readPort(l); err == nil {
		for deadline := time.Now().Add(samePortPatience); time.Now().Before(deadline); time.Sleep(pollEvery) {
			if portFree(last) == nil {
				return last, nil
			}
		}
	}
	var err error
	for range 100 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		if err = portFree(port); err == nil {
			return port, nil
		}
	}
	return 0, fmt.Errorf("find a free port for the API server: %w", err)
}

func portFree(port int) error {
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return ln.Close()
}
