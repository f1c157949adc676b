// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// NodeOptions says how to start a node.
type NodeOptions struct {
	Name string
	// Binary is the path of vk-firkin, Kits the folder of the guest kits.
	Binary, Kits string
	// Dir is where the node keeps everything, in a folder of its name. It must be
	// short: the sockets of its machines are below it.
	Dir string
	// StateDir and CacheDir move the state and the cache elsewhere.
	StateDir, CacheDir string
	// InsecureRegistries are registries on loopback that speak plain HTTP.
	InsecureRegistries []string
	// Joined is a node whose state folder has credentials already: it is given none.
	Joined bool
	// IP is the node's address, by default where the cluster reaches this host, which is 127.0.0.1 for the embedded
	// control plane. The API server's proxy wants another one.
	IP string
	// Args are further flags, Env further environment of the process and of what it starts.
	Args, Env []string
}

// Node is one `vk-firkin node`. It can be killed and started again on the same state.
type Node struct {
	Name     string
	StateDir string
	CacheDir string
	LogPath  string
	// MetricsAddress is where it serves Prometheus metrics in plain HTTP.
	MetricsAddress string
	// IP is where the API server reaches it.
	IP string

	binary  string
	args    []string
	env     []string
	cluster *ControlPlane
	process *exec.Cmd
	exited  chan struct{}
	began   time.Time // the process
}

// StartNode joins a node to the cluster and returns when it is Ready.
func (c *ControlPlane) StartNode(ctx context.Context, o NodeOptions) (*Node, error) {
	n, err := c.PrepareNode(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := n.Start(ctx); err != nil {
		return nil, err
	}
	return n, nil
}

// PrepareNode makes all that a node needs, for somebody else to start its process with Args.
func (c *ControlPlane) PrepareNode(ctx context.Context, o NodeOptions) (*Node, error) {
	base := filepath.Join(o.Dir, o.Name)
	n := &Node{cluster: c, binary: o.Binary, env: o.Env, Name: o.Name, StateDir: o.StateDir, CacheDir: o.CacheDir, LogPath: filepath.Join(base, "node.log")}
	if n.StateDir == "" {
		n.StateDir = filepath.Join(base, "s")
	}
	if n.CacheDir == "" {
		n.CacheDir = filepath.Join(base, "cache")
	}
	if err := os.MkdirAll(base, 0o700); err != nil {
		return nil, err
	}
	if o.IP == "" {
		o.IP = c.NodeIP()
	}
	n.IP = o.IP
	if err := c.claim(ctx, o.Name); err != nil {
		return nil, err
	}
	var identity []string
	if !o.Joined {
		if err := c.credentials(ctx, o.Name, o.IP, base); err != nil {
			return nil, err
		}
		identity = []string{
			"--kubeconfig", filepath.Join(base, "kubeconfig"),
			"--node-name", o.Name,
			"--tls-cert-file", filepath.Join(base, "kubelet.crt"),
			"--tls-private-key-file", filepath.Join(base, "kubelet.key"),
			"--client-ca-file", filepath.Join(base, "client-ca.crt"),
		}
	}
	kubelet, err := freePort()
	if err != nil {
		return nil, err
	}
	metrics, err := freePort()
	if err != nil {
		return nil, err
	}
	n.MetricsAddress = "127.0.0.1:" + strconv.Itoa(metrics)
	n.args = slices.Concat([]string{
		"node",
		"--node-ip", o.IP,
		"--kubelet-port", strconv.Itoa(kubelet),
		"--guest-kit", filepath.Join(o.Kits, runtime.GOARCH),
		"--state-dir", n.StateDir,
		"--cache-dir", n.CacheDir,
		"--metrics-address", n.MetricsAddress,
	}, identity, o.Args)
	for _, r := range o.InsecureRegistries {
		n.args = append(n.args, "--insecure-registry", r)
	}
	return n, nil
}

// Args are what the node's process is run with, the command's name first.
func (n *Node) Args() []string { return slices.Clone(n.args) }

// Start starts the process and waits until its node is Ready.
func (n *Node) Start(ctx context.Context) error {
	if err := n.Launch(); err != nil {
		return err
	}
	return n.WaitReady(ctx)
}

// Launch starts the process and waits for nothing.
func (n *Node) Launch() error {
	log, err := os.OpenFile(n.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	n.began = time.Now()
	n.process = exec.Command(n.binary, n.args...)
	n.process.Env = append(os.Environ(), n.env...)
	n.process.Stdout, n.process.Stderr = log, log
	n.process.SysProcAttr = childAttributes()
	if err := n.process.Start(); err != nil {
		return err
	}
	n.exited = make(chan struct{})
	go func(p *exec.Cmd, exited chan struct{}) {
		defer close(exited)
		_ = p.Wait()
	}(n.process, n.exited)
	return nil
}

// WaitReady waits until the node of the process that runs is Ready.
func (n *Node) WaitReady(ctx context.Context) error {
	for {
		// Ready must be newer than this start, or the condition of an earlier
		// process would count.
		out, err := n.cluster.Output(ctx, "get", "node", n.Name, "-o",
			`jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{end}`)
		fields := strings.Fields(out)
		if err == nil && len(fields) == 2 && fields[0] == "True" {
			if beat, err := time.Parse(time.RFC3339, fields[1]); err == nil && !beat.Before(n.began.Truncate(time.Second)) {
				return nil
			}
		}
		select {
		case <-n.exited:
			return fmt.Errorf("node %s ended: %v; see %s", n.Name, n.process.ProcessState, n.LogPath)
		case <-ctx.Done():
			return fmt.Errorf("node %s is not ready (%s): %w; see %s", n.Name, strings.TrimSpace(out), ctx.Err(), n.LogPath)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Exited is closed when the process that was started last has ended.
func (n *Node) Exited() <-chan struct{} { return n.exited }

// Terminate tells the process to end, in order, and waits for it. Its machines go on.
func (n *Node) Terminate(ctx context.Context) error {
	_ = n.process.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("node %s does not end: %w; see %s", n.Name, ctx.Err(), n.LogPath)
	}
}

// Kill ends the process as a crash would, and waits for it.
func (n *Node) Kill() {
	_ = n.process.Process.Kill()
	<-n.exited
}

// Stop ends the process in order, then every machine that it left running.
func (n *Node) Stop() {
	if n == nil || n.process == nil || n.process.Process == nil {
		return
	}
	_ = n.process.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.exited:
	case <-time.After(30 * time.Second):
		n.Kill()
	}
	for pid := range n.processes() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// PID is the process's id.
func (n *Node) PID() int { return n.process.Process.Pid }

// MachinePIDs are the ids of the processes that machines live in, in order: one for each
// machine, its QEMU or its shim.
func (n *Node) MachinePIDs() []int {
	all := n.processes()
	var pids []int
	for pid, p := range all {
		// A simulated machine is a shim with a QEMU of its own.
		if _, child := all[p.parent]; !child {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// Machines are the processes that machines live in, by the ids of the machines.
func (n *Node) Machines() map[string]int {
	all := n.processes()
	machines := map[string]int{}
	for _, pid := range n.MachinePIDs() {
		p := all[pid]
		_, rest, _ := strings.Cut(p.dir+"/ "+p.command+" ", filepath.Join(n.StateDir, "machines")+"/")
		if id := rest[:max(0, strings.IndexAny(rest, "/ ,"))]; id != "" {
			machines[id] = pid
		}
	}
	return machines
}

// MachinePID is the id of the process that a machine lives in, 0 when there is none.
func (n *Node) MachinePID(id string) int {
	all := n.processes()
	for _, pid := range n.MachinePIDs() {
		if strings.Contains(all[pid].command, filepath.Join(n.StateDir, "machines", id)) {
			return pid
		}
	}
	return 0
}

// Hypervisor is the id of the QEMU that the process of a machine has started, a shim over
// the simulator. 0: there is none.
func (n *Node) Hypervisor(machine int) int {
	for pid, p := range n.processes() {
		if p.parent == machine {
			return pid
		}
	}
	return 0
}

// Remnants tells what machines still hold on the host: their processes, and what is left
// in the folder that they live in.
func (n *Node) Remnants() []string {
	var left []string
	for pid, p := range n.processes() {
		left = append(left, fmt.Sprintf("process %d: %.60s", pid, p.command))
	}
	entries, err := os.ReadDir(filepath.Join(n.StateDir, "machines"))
	if err != nil {
		left = append(left, err.Error())
	}
	for _, e := range entries {
		left = append(left, filepath.Join("machines", e.Name()))
	}
	slices.Sort(left)
	return left
}

// Strangers are processes that work in the state folder, or were told of something in it, and
// are no machine: what the node has started and forgotten.
func (n *Node) Strangers() []string {
	machines := n.processes()
	var found []string
	for pid, p := range hostProcesses() {
		if _, machine := machines[pid]; !machine && pid != n.PID() && strings.Contains(p.command+" "+p.dir+"/", n.StateDir+"/") {
			found = append(found, fmt.Sprintf("process %d in %s: %.100s", pid, p.dir, p.command))
		}
	}
	return found
}

// processes are those that machines are made of, shims and QEMUs: their command lines name
// this node's state folder.
func (n *Node) processes() map[int]hostProcess {
	all := hostProcesses()
	maps.DeleteFunc(all, func(_ int, p hostProcess) bool {
		program, _, _ := strings.Cut(p.command, " ")
		return !strings.Contains(p.command+p.dir, n.StateDir+"/") || !strings.Contains(program, "qemu") && !strings.Contains(p.command, " machine-shim ")
	})
	return all
}

// hostProcess is a process of this host.
type hostProcess struct {
	parent  int
	command string
	// dir is where it runs, empty when that is not known: a QEMU runs in its machine's folder,
	// and its command line has no path of it.
	dir string
}

// Metric sums the samples of a metric whose labels contain all the given pairs, each
// written as name="value". found tells whether there was any.
func (n *Node) Metric(ctx context.Context, name string, labels ...string) (sum float64, found bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.MetricsAddress+"/metrics", nil)
	if err != nil {
		return 0, false, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, false, fmt.Errorf("scrape node %q: %w", n.Name, err)
	}
	defer resp.Body.Close()
	scanner := bufio.NewScanner(resp.Body)
	scanner.Buffer(nil, 1<<20)
next:
	for scanner.Scan() {
		line := scanner.Text()
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(rest, label) {
				continue next
			}
		}
		value, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			return 0, false, fmt.Errorf("metric line %q: %w", line, err)
		}
		sum, found = sum+value, true
	}
	return sum, found, scanner.Err()
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.New("not a TCP address")
	}
	return addr.Port, nil
}
