// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/vk-firkin/vk-firkin/provider/probe"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
)

const (
	// maxHandlerOutput is what is kept of a command's output, as the kubelet does it.
	maxHandlerOutput = 10 << 10
	// answerSlack is how much longer than a probe the agent may take to answer: what it
	// asks for is bounded by the agent, so that more says that the agent is in trouble and
	// not the container.
	answerSlack = 5 * time.Second
	// maxLook is the longest that the agent looks for an answer.
	maxLook = time.Hour
)

// handlerTarget is the run of a container that a probe or a hook is about.
type handlerTarget struct {
	pod       *corev1.Pod
	container *corev1.Container
	// id is the run's in the machine.
	id   string
	hold *machineHold
}

// runProbe looks at a container once. It returns within the probe's timeout, give or take
// the way to the machine.
func (e *environment) runProbe(ctx context.Context, t handlerTarget, h *corev1.ProbeHandler, timeout time.Duration) probe.Outcome {
	switch {
	case h.Exec != nil:
		return execProbe(ctx, t, h.Exec.Command, timeout)
	case h.HTTPGet != nil:
		get, err := e.httpGet(t, h.HTTPGet, "kube-probe")
		if err != nil {
			return probe.Outcome{Message: err.Error()}
		}
		return lookOutcome(look(ctx, t, &agentv1.ProbeRequest{Kind: &agentv1.ProbeRequest_Http{Http: get}}, timeout))
	case h.TCPSocket != nil:
		tcp, err := tcpConnect(t, h.TCPSocket)
		if err != nil {
			return probe.Outcome{Message: err.Error()}
		}
		return lookOutcome(look(ctx, t, &agentv1.ProbeRequest{Kind: &agentv1.ProbeRequest_Tcp{Tcp: tcp}}, timeout))
	case h.GRPC != nil:
		ask := &agentv1.GRPCProbe{Port: h.GRPC.Port}
		if h.GRPC.Service != nil {
			ask.Service = *h.GRPC.Service
		}
		return lookOutcome(look(ctx, t, &agentv1.ProbeRequest{Kind: &agentv1.ProbeRequest_Grpc{Grpc: ask}}, timeout))
	default:
		return probe.Outcome{Message: "the probe has no handler that this node knows"}
	}
}

// beginTime is how long a command of a probe may take to begin, in a guest that is busy with the
// start of another container for example: no part of its timeout.
const beginTime = 15 * time.Second

// execProbe succeeds with a command that ends with code 0 in time, which runs from when the command
// has begun: so it does where the kubelet has containerd execute it (internal/cri/server/container_execsync.go).
func execProbe(ctx context.Context, t handlerTarget, command []string, timeout time.Duration) probe.Outcome {
	// The container's own variables are put in, as far as the pod has their values: so does
	// the kubelet for probes, and not for hooks.
	known := map[string]string{}
	for _, v := range t.container.Env {
		known[v.Name] = v.Value
	}
	args := make([]string, 0, len(command))
	for _, a := range command {
		args = append(args, expand(a, known))
	}
	timed, cancel := context.WithCancel(ctx)
	defer cancel()
	var over atomic.Bool
	timer := time.AfterFunc(beginTime, func() { over.Store(true); cancel() })
	defer timer.Stop()
	output, end, err := runCommand(timed, t, args, func() { timer.Reset(timeout) })
	tooLong := probe.Outcome{Result: probe.Failure, Message: strings.TrimSpace(fmt.Sprintf("command timed out after %s: %s", timeout, output))}
	switch {
	case err == nil && end == "":
		return probe.Outcome{Result: probe.Success, Message: output}
	case err == nil && output == "":
		return probe.Outcome{Result: probe.Failure, Message: "command ended with " + end}
	case err == nil:
		return probe.Outcome{Result: probe.Failure, Message: output}
	case ctx.Err() == nil && over.Load():
		return tooLong
	default:
		return probe.Outcome{Message: err.Error()}
	}
}

// runCommand runs a command in a container to its end; when ctx ends, it is killed. began, if it is not nil,
// is called when it has begun. output is
// what it wrote to both its streams, in the order of its arrival, at most maxHandlerOutput.
// end is how it ended, empty for code 0; err is why that is not known.
func runCommand(ctx context.Context, t handlerTarget, args []string, began func()) (output, end string, err error) {
	if len(args) == 0 {
		return "", "", errors.New("there is no command")
	}
	g, err := t.hold.lease.Guest(ctx)
	if err != nil {
		return "", "", fmt.Errorf("reach the machine's agent: %w", err)
	}
	req := connect.NewRequest(&process.StartRequest{Process: &process.ProcessConfig{Cmd: args[0], Args: args[1:]}, Stdin: new(bool)})
	req.Header().Set(guest.HeaderContainer, t.id)
	req.Header().Set(guest.HeaderKillOnDisconnect, "true")
	stream, err := g.Process.Start(ctx, req)
	if err != nil {
		return "", "", fmt.Errorf("start command: %w", err)
	}
	defer stream.Close()
	var out []byte
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().GetEvent().(type) {
		case *process.ProcessEvent_Start:
			if began != nil {
				began()
			}
		case *process.ProcessEvent_Data:
			// What is too much is thrown away, so that the command does not wait for a reader.
			for _, b := range [][]byte{e.Data.GetStdout(), e.Data.GetStderr()} {
				out = append(out, b[:min(len(b), maxHandlerOutput-len(out))]...)
			}
		case *process.ProcessEvent_End:
			return bound(string(out), maxHandlerOutput), commandEnd(e.End), nil
		}
	}
	if err = stream.Err(); err == nil {
		err = errors.New("the machine lost the command")
	}
	return bound(string(out), maxHandlerOutput), "", fmt.Errorf("run command: %w", err)
}

// commandEnd says how a command ended, nothing for code 0.
func commandEnd(end *process.ProcessEvent_EndEvent) string {
	switch {
	case end.GetExited() && end.GetExitCode() == 0:
		return ""
	case end.GetExited():
		return fmt.Sprintf("exit code %d", end.GetExitCode())
	default:
		return "status " + strconv.Quote(bound(end.GetStatus(), 64))
	}
}

// look asks the agent to look once, for as long as timeout.
func look(ctx context.Context, t handlerTarget, req *agentv1.ProbeRequest, timeout time.Duration) (*agentv1.ProbeResponse, error) {
	timeout = min(timeout, maxLook)
	req.TimeoutNano = timeout.Nanoseconds()
	ctx, cancel := context.WithTimeout(ctx, timeout+answerSlack)
	defer cancel()
	g, err := t.hold.lease.Guest(ctx)
	if err != nil {
		return nil, fmt.Errorf("reach the machine's agent: %w", err)
	}
	res, err := g.Agent.Probe(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, fmt.Errorf("ask the machine's agent: %w", err)
	}
	return res.Msg, nil
}

// lookOutcome is what the agent's answer says about the container.
func lookOutcome(r *agentv1.ProbeResponse, err error) probe.Outcome {
	switch {
	case err != nil:
		return probe.Outcome{Message: err.Error()}
	case r.GetSuccess() && r.GetMessage() != "":
		return probe.Outcome{Result: probe.Warning, Message: bound(r.GetMessage(), maxEventMessage)}
	case r.GetSuccess():
		return probe.Outcome{Result: probe.Success}
	case r.GetHttpStatus() != 0:
		return probe.Outcome{Result: probe.Failure, Message: fmt.Sprintf("HTTP probe failed with statuscode: %d", r.GetHttpStatus())}
	default:
		return probe.Outcome{Result: probe.Failure, Message: bound(r.GetMessage(), maxEventMessage)}
	}
}

// httpGet is what the agent is to ask for. component names the asker in the user agent.
func (e *environment) httpGet(t handlerTarget, a *corev1.HTTPGetAction, component string) (*agentv1.HTTPProbe, error) {
	port, err := containerPort(t.container, a.Port)
	if err != nil {
		return nil, err
	}
	p := &agentv1.HTTPProbe{Port: port, Path: requestPath(a.Path), Tls: a.Scheme == corev1.URISchemeHTTPS, ConnectHost: a.Host}
	var agentSet, acceptSet bool
	for _, h := range a.HTTPHeaders {
		switch http.CanonicalHeaderKey(h.Name) {
		case "Host":
			if p.Host == "" {
				p.Host = h.Value
			}
			continue
		case "User-Agent":
			agentSet = true
		case "Accept":
			acceptSet = true
			if h.Value == "" { // how a pod says that there is to be none
				continue
			}
		}
		p.Headers = append(p.Headers, &agentv1.HTTPHeader{Name: h.Name, Value: h.Value})
	}
	if !agentSet {
		p.Headers = append(p.Headers, &agentv1.HTTPHeader{Name: "User-Agent", Value: component + "/" + e.userAgent})
	}
	if !acceptSet {
		p.Headers = append(p.Headers, &agentv1.HTTPHeader{Name: "Accept", Value: "*/*"})
	}
	primary, _, _ := strings.Cut(e.nodeIP, ",")
	if host := cmp.Or(a.Host, primary); p.Host == "" && host != "" { // the pod's address, as its status shows it
		p.Host = net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
	return p, nil
}

// requestPath is the path and the query of a request for what a pod has as its path, which
// the API does not check. What is no path with a query is all path.
func requestPath(path string) string {
	u, err := url.Parse(path)
	if err != nil {
		u = &url.URL{Path: path}
	}
	u.Scheme, u.Host, u.Opaque = "", "", ""
	return "/" + strings.TrimPrefix(u.RequestURI(), "/")
}

// tcpConnect is where the agent is to connect to.
func tcpConnect(t handlerTarget, a *corev1.TCPSocketAction) (*agentv1.TCPProbe, error) {
	port, err := containerPort(t.container, a.Port)
	if err != nil {
		return nil, err
	}
	return &agentv1.TCPProbe{Port: port, ConnectHost: a.Host}, nil
}

// containerPort is the number of a port that may be given by one of the container's names.
func containerPort(c *corev1.Container, port intstr.IntOrString) (int32, error) {
	n := port.IntValue() // of a name that is a number as well
	if port.Type == intstr.String {
		for _, p := range c.Ports {
			if p.Name == port.StrVal {
				n = int(p.ContainerPort)
			}
		}
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("container %q has no port %q", c.Name, port.String())
	}
	return int32(n), nil
}

// runHook runs a lifecycle hook to its end, or until ctx ends. The error says for people what
// the hook did: it becomes an event's text.
func (e *environment) runHook(ctx context.Context, t handlerTarget, h *corev1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		output, end, err := runCommand(ctx, t, h.Exec.Command, nil)
		if err == nil && end != "" {
			err = fmt.Errorf("command ended with %s: %s", end, bound(output, maxEventMessage/2))
		}
		return hookError("exec", err)
	case h.HTTPGet != nil:
		return hookError("httpGet", e.httpHook(ctx, t, h.HTTPGet))
	case h.TCPSocket != nil:
		tcp, err := tcpConnect(t, h.TCPSocket)
		if err == nil {
			_, err = lookToEnd(ctx, t, &agentv1.ProbeRequest{Kind: &agentv1.ProbeRequest_Tcp{Tcp: tcp}})
		}
		return hookError("tcpSocket", err)
	case h.Sleep != nil:
		if !sleep(ctx, seconds(h.Sleep.Seconds)) {
			return hookError("sleep", context.Cause(ctx))
		}
		return nil
	default:
		return hookError("lifecycle", errors.New("it has no handler that this node knows"))
	}
}

func hookError(kind string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s hook failed: %w", kind, err)
}

// httpHook makes a request. As with the kubelet any answer will do, and a server that was to
// speak HTTPS and speaks plain HTTP is asked once more without, and without credentials.
func (e *environment) httpHook(ctx context.Context, t handlerTarget, a *corev1.HTTPGetAction) error {
	get, err := e.httpGet(t, a, "kube-lifecycle")
	if err != nil {
		return err
	}
	req := &agentv1.ProbeRequest{Kind: &agentv1.ProbeRequest_Http{Http: get}}
	r, err := lookToEnd(ctx, t, req)
	if err == nil || !get.GetTls() || r.GetMessage() != guest.ProbePlainHTTP {
		return err
	}
	get.Tls = false
	var headers []*agentv1.HTTPHeader
	for _, h := range get.GetHeaders() {
		if http.CanonicalHeaderKey(h.GetName()) != "Authorization" {
			headers = append(headers, h)
		}
	}
	get.Headers = headers
	if _, again := lookToEnd(ctx, t, req); again != nil {
		return err
	}
	e.events.container(t.pod, t.container.Name, true, eventHTTPFallback, "The lifecycle hook's server answered a request over HTTPS in plain HTTP, a request over HTTP succeeded")
	return nil
}

// lookToEnd looks for as long as ctx lives. Any answer is a success.
func lookToEnd(ctx context.Context, t handlerTarget, req *agentv1.ProbeRequest) (*agentv1.ProbeResponse, error) {
	timeout := maxLook
	if end, ok := ctx.Deadline(); ok {
		timeout = max(time.Millisecond, time.Until(end))
	}
	r, err := look(ctx, t, req, timeout)
	if err == nil && !r.GetSuccess() && r.GetHttpStatus() == 0 {
		err = errors.New(bound(r.GetMessage(), maxEventMessage/2))
	}
	return r, err
}
