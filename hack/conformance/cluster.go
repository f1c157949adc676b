// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/vk-firkin/vk-firkin/test/cluster"
)

// stage is what the specs run on: a control plane and one node.
type stage struct {
	plane *cluster.ControlPlane
	node  *cluster.Node
	// dir is short: the sockets of machines are below it.
	dir string
}

// startStage starts both and returns when the node is Ready. It stops what it started when it fails.
func startStage(ctx context.Context, p paths, registry string, nodeArgs []string) (s *stage, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	s = &stage{}
	if s.dir, err = os.MkdirTemp("/tmp", "fk-cf-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.stop()
			err = fmt.Errorf("%w; logs are in %s", err, s.dir)
		}
	}()
	if s.plane, err = cluster.StartControlPlane(ctx, p.controlPlane, s.dir); err != nil {
		return nil, err
	}
	if err := s.plane.InstallAPI(ctx); err != nil {
		return nil, err
	}
	s.node, err = s.plane.StartNode(ctx, cluster.NodeOptions{
		Name: "conformance", Binary: p.firkin, Kits: p.kits, Dir: s.dir, InsecureRegistries: []string{registry},
		// The API server refuses to proxy to a loopback address.
		IP: hostAddress(),
		// The specs' pods tolerate nothing.
		Args: append([]string{"--no-taint"}, nodeArgs...),
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// warmUp runs a pod of every image, and so has the node pull them and build the snapshot that
// machines are restored from: specs that give a pod 30 s to start are not about either.
func (s *stage) warmUp(ctx context.Context, refs []string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if _, err := s.plane.Output(ctx, "wait", "--for=create", "serviceaccount/default", "--timeout=60s"); err != nil {
		return err
	}
	for i, ref := range refs {
		if _, err := s.plane.Output(ctx, "run", fmt.Sprintf("warm-up-%d", i), "--image", ref, "--restart=Never", "--labels=warm-up=",
			"--command", "--", "true"); err != nil {
			return err
		}
	}
	if _, err := s.plane.Output(ctx, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod", "--selector=warm-up", "--timeout=5m"); err != nil {
		return err
	}
	_, err := s.plane.Output(ctx, "delete", "pod", "--selector=warm-up")
	return err
}

// stop ends both; the logs stay in dir.
func (s *stage) stop() {
	s.node.Stop()
	s.plane.Stop()
}

// hostAddress is this host's first address that others could reach, loopback if it has none.
func hostAddress() string {
	addresses, err := net.InterfaceAddrs()
	if err == nil {
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
				return n.IP.String()
			}
		}
	}
	return "127.0.0.1"
}
