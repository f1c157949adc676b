// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package snapshottest is the least driver that snapshots can be tested with:
// machines in memory, saved as files, with the real protocol spoken to a minimal
// agent whose every answer can be bent; containers are those of vm/guest/guesttest.
// vm/fake has the whole contract of a driver, vm/guest/guesttest the whole agent.
package snapshottest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

// Driver implements vm.Driver. Safe for concurrent use.
type Driver struct {
	features vm.Features

	mu       sync.Mutex
	machines map[string]*Machine
	restores int
	creates  int
	fault    func(op, id string) error
	bend     func(*Agent)
}

// New returns a driver without machines.
func New() *Driver {
	return &Driver{
		features: vm.Features{
			Arch: "amd64", Snapshots: true, Pause: true, ImageSlots: 4,
			SlotBytes: 1 << 20, ScratchBytes: 1 << 20, Compatibility: "test-1",
		},
		machines: make(map[string]*Machine),
	}
}

// SetFault makes operations fail: f is asked before each ("create", "restore",
// "load", "list", "resume", "pause", "stop", "save", "dial", "seal", "delete") and
// its error is the result. nil is none.
func (d *Driver) SetFault(f func(op, id string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = f
}

// SetBend changes what the agents of machines made from now on do. nil is nothing.
func (d *Driver) SetBend(f func(*Agent)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bend = f
}

// Machines lists what there is, sorted, whatever the fault.
func (d *Driver) Machines() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	ids := make([]string, 0, len(d.machines))
	for id := range d.machines {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Machine returns a machine, nil if there is none.
func (d *Driver) Machine(id string) *Machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.machines[id]
}

func (d *Driver) check(op, id string) error {
	d.mu.Lock()
	fault := d.fault
	d.mu.Unlock()
	if fault == nil {
		return nil
	}
	return fault(op, id)
}

// Name implements vm.Driver.
func (d *Driver) Name() string { return "test" }

// Features implements vm.Driver.
func (d *Driver) Features() vm.Features {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.features
}

// SetCompatibility makes it the driver of another host, or another version of itself.
func (d *Driver) SetCompatibility(c string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.features.Compatibility = c
}

// Close implements vm.Driver.
func (d *Driver) Close() error { return nil }

// Create implements vm.Driver.
func (d *Driver) Create(ctx context.Context, id string, cfg vm.Config) (vm.Machine, error) {
	d.mu.Lock()
	d.creates++
	d.mu.Unlock()
	if err := d.check("create", id); err != nil {
		return nil, err
	}
	return d.add(ctx, id, cfg, vm.StateRunning, memory{})
}

// Restore implements vm.Driver.
func (d *Driver) Restore(ctx context.Context, id, dir string, cfg vm.Config) (vm.Machine, error) {
	d.mu.Lock()
	d.restores++
	d.mu.Unlock()
	if err := d.check("restore", id); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, "memory"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", vm.ErrSnapshotInvalid, err)
	}
	var memory memory
	if json.Unmarshal(data, &memory) != nil {
		return nil, fmt.Errorf("%w: memory", vm.ErrSnapshotInvalid)
	}
	return d.add(ctx, id, cfg, vm.StatePaused, memory)
}

// memory is what a simulated machine remembers: containers run on in no other.
type memory struct {
	SealKey []byte
	Layers  []string
}

func (d *Driver) add(ctx context.Context, id string, cfg vm.Config, state vm.State, mem memory) (vm.Machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.machines[id] != nil {
		return nil, vm.ErrAlreadyExists
	}
	m := &Machine{driver: d, id: id, cfg: cfg, state: state, exited: make(chan struct{}), agent: &Agent{sealKey: mem.SealKey, layers: mem.Layers}}
	m.agent.machine = m
	if d.bend != nil {
		d.bend(m.agent)
	}
	d.machines[id] = m
	return m, nil
}

// Load implements vm.Driver.
func (d *Driver) Load(_ context.Context, id string) (vm.Machine, error) {
	if err := d.check("load", id); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.machines[id]
	if m == nil {
		return nil, vm.ErrNotFound
	}
	return m, nil
}

// List implements vm.Driver.
func (d *Driver) List(context.Context) ([]string, error) {
	if err := d.check("list", ""); err != nil {
		return nil, err
	}
	return d.Machines(), nil
}

// Count tells how often machines were created and restored.
func (d *Driver) Count() (creates, restores int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.creates, d.restores
}

// Machine implements vm.Machine, vm.Pauser, vm.Saver and vm.Consoler.
type Machine struct {
	driver *Driver
	id     string
	cfg    vm.Config
	agent  *Agent
	exited chan struct{}

	mu    sync.Mutex
	state vm.State
	gone  bool
}

// Agent is the machine's agent.
func (m *Machine) Agent() *Agent { return m.agent }

// Config is what the machine was made of.
func (m *Machine) Config() vm.Config { return m.cfg }

// Exit ends the machine from inside.
func (m *Machine) Exit() { _ = m.set("", vm.StateExited) }

// ID implements vm.Machine.
func (m *Machine) ID() string { return m.id }

// State implements vm.Machine.
func (m *Machine) State(context.Context) (vm.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone {
		return "", vm.ErrNotFound
	}
	return m.state, nil
}

func (m *Machine) set(op string, s vm.State) error {
	if err := m.driver.check(op, m.id); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone {
		return vm.ErrNotFound
	}
	if m.state == vm.StateExited && s != vm.StateExited {
		return vm.ErrInvalidState
	}
	if s == vm.StateExited && m.state != s {
		close(m.exited)
		defer m.agent.HangUp()
	}
	m.state = s
	return nil
}

// Resume implements vm.Machine.
func (m *Machine) Resume(context.Context) error { return m.set("resume", vm.StateRunning) }

// Pause implements vm.Pauser.
func (m *Machine) Pause(context.Context) error { return m.set("pause", vm.StatePaused) }

// Stop implements vm.Machine.
func (m *Machine) Stop(context.Context, time.Duration) error {
	return m.set("stop", vm.StateExited)
}

// Save implements vm.Saver.
func (m *Machine) Save(_ context.Context, dir string) ([]string, error) {
	if err := m.driver.check("save", m.id); err != nil {
		return nil, err
	}
	if s, _ := m.State(context.Background()); s != vm.StatePaused {
		return nil, vm.ErrInvalidState
	}
	data, err := json.Marshal(memory{SealKey: m.agent.Key(), Layers: m.agent.layerNames()})
	if err != nil {
		return nil, err
	}
	for name, content := range map[string][]byte{
		"memory": data, "device": []byte("device state"), "scratch": bytes.Repeat([]byte{7}, 64<<10),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return nil, err
		}
	}
	// Mostly a hole, as a real disk is.
	if err := os.Truncate(filepath.Join(dir, "scratch"), 4<<20); err != nil {
		return nil, err
	}
	return []string{"memory", "scratch", "device"}, nil
}

// Wait implements vm.Machine.
func (m *Machine) Wait(ctx context.Context) (vm.Exit, error) {
	select {
	case <-m.exited:
		return vm.Exit{Reason: vm.ExitGuest, Detail: "gone"}, nil
	case <-ctx.Done():
		return vm.Exit{}, ctx.Err()
	}
}

// Delete implements vm.Machine.
func (m *Machine) Delete(ctx context.Context) error {
	if err := m.driver.check("delete", m.id); err != nil {
		return err
	}
	_ = m.set("", vm.StateExited)
	m.mu.Lock()
	m.gone = true
	m.mu.Unlock()
	m.agent.end()
	m.driver.mu.Lock()
	defer m.driver.mu.Unlock()
	if m.driver.machines[m.id] == m {
		delete(m.driver.machines, m.id)
	}
	return nil
}

// Console implements vm.Consoler.
func (m *Machine) Console(context.Context) ([]byte, error) {
	return []byte("booting\r\n\x1b[31mpanic: \x00no init\n"), nil
}

// DialGuest implements vm.Machine.
func (m *Machine) DialGuest(ctx context.Context, port uint32) (net.Conn, error) {
	if err := m.driver.check("dial", m.id); err != nil {
		return nil, err
	}
	if s, err := m.State(ctx); err != nil || s != vm.StateRunning {
		return nil, cmp.Or(err, vm.ErrUnavailable)
	}
	host, inside := net.Pipe()
	go m.agent.serve(inside)
	return host, nil
}

// Agent is the agent of a machine: as much of it as a snapshot needs. The flags are
// for SetBend.
type Agent struct {
	agentv1connect.UnimplementedAgentServiceHandler

	// Silent: it never answers.
	Silent bool
	// Refused: Refresh fails.
	Refused bool
	// Forged: its proof is wrong.
	Forged bool
	// Unsealed: it does not carry the memory that was saved.
	Unsealed bool
	// Stubborn: it answers PowerOff and stays.
	Stubborn bool

	machine *Machine

	mu        sync.Mutex
	sealKey   []byte
	refreshes []*agentv1.RefreshRequest
	conns     []net.Conn
	layers    []string         // that the saved machine had
	guest     *guesttest.Agent // nil until containers are spoken of
	ended     bool
}

// containers is the rest of the agent: the real one over simulated containers, made
// when it is first asked for.
func (a *Agent) containers(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	if a.guest == nil && !a.ended {
		a.guest = guesttest.New(guesttest.Options{Layers: a.layers})
	}
	g := a.guest
	a.mu.Unlock()
	if g == nil {
		http.Error(w, "the machine has ended", http.StatusServiceUnavailable)
		return
	}
	g.Handler().ServeHTTP(w, r)
}

func (a *Agent) layerNames() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.guest == nil {
		return a.layers
	}
	return a.guest.Layers()
}

// end releases what the machine held.
func (a *Agent) end() {
	a.mu.Lock()
	g := a.guest
	a.guest, a.ended = nil, true
	a.mu.Unlock()
	if g != nil {
		_ = g.Close()
	}
}

// Refreshes returns the requests for a refresh so far.
func (a *Agent) Refreshes() []*agentv1.RefreshRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.refreshes)
}

// HangUp breaks all connections from the guest's end.
func (a *Agent) HangUp() {
	a.mu.Lock()
	conns := a.conns
	a.conns = nil
	a.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// PowerOff ends the machine.
func (a *Agent) PowerOff(context.Context, *connect.Request[agentv1.PowerOffRequest]) (*connect.Response[agentv1.PowerOffResponse], error) {
	if !a.Stubborn {
		_ = a.machine.set("", vm.StateExited)
	}
	return connect.NewResponse(&agentv1.PowerOffResponse{}), nil
}

// Key is the seal key that the machine carries; nil when it was never sealed.
func (a *Agent) Key() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sealKey
}

// SetKey makes it another machine, as far as its proof goes.
func (a *Agent) SetKey(key []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sealKey = key
}

func (a *Agent) serve(conn net.Conn) {
	defer conn.Close()
	a.mu.Lock()
	a.conns = append(a.conns, conn)
	a.mu.Unlock()
	if a.Silent {
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	talk, err := guest.Answer(conn)
	if err != nil {
		return
	}
	mux := http.NewServeMux()
	mux.Handle(agentv1connect.NewAgentServiceHandler(a))
	mux.HandleFunc("/", a.containers)
	(&http2.Server{}).ServeConn(talk, &http2.ServeConnOpts{Handler: mux})
}

// Stats answers as an agent without containers does.
func (a *Agent) Stats(context.Context, *connect.Request[agentv1.StatsRequest]) (*connect.Response[agentv1.StatsResponse], error) {
	return connect.NewResponse(&agentv1.StatsResponse{}), nil
}

// Info answers as the agent does.
func (a *Agent) Info(context.Context, *connect.Request[agentv1.InfoRequest]) (*connect.Response[agentv1.InfoResponse], error) {
	return connect.NewResponse(&agentv1.InfoResponse{ProtocolVersion: guest.ProtocolVersion}), nil
}

// Ping answers as the agent does.
func (a *Agent) Ping(_ context.Context, r *connect.Request[agentv1.PingRequest]) (*connect.Response[agentv1.PingResponse], error) {
	return connect.NewResponse(&agentv1.PingResponse{Payload: r.Msg.Payload}), nil
}

// Seal answers as the agent does.
func (a *Agent) Seal(_ context.Context, r *connect.Request[agentv1.SealRequest]) (*connect.Response[agentv1.SealResponse], error) {
	if err := a.machine.driver.check("seal", a.machine.id); err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sealKey = r.Msg.Key
	return connect.NewResponse(&agentv1.SealResponse{}), nil
}

// Refresh answers as the agent does.
func (a *Agent) Refresh(_ context.Context, r *connect.Request[agentv1.RefreshRequest]) (*connect.Response[agentv1.RefreshResponse], error) {
	if a.Refused {
		return nil, connect.NewError(connect.CodeInternal, errors.New("no entropy device"))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(r.Msg.Challenge) != 32 || len(r.Msg.MachineId) != 32 || len(r.Msg.Entropy) < 32 || len(r.Msg.Entropy) > 256 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("not what the protocol says"))
	}
	a.refreshes = append(a.refreshes, r.Msg)
	resp := &agentv1.RefreshResponse{}
	if a.sealKey != nil && !a.Unsealed {
		mac := hmac.New(sha256.New, a.sealKey)
		mac.Write(r.Msg.Challenge)
		resp.Proof = mac.Sum(nil)
		if a.Forged {
			resp.Proof[0]++
		}
	}
	return connect.NewResponse(resp), nil
}
