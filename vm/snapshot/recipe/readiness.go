// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package recipe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
)

// maxTry bounds one try of a readiness check.
const maxTry = 10 * time.Second

// await repeats the readiness check until it succeeds once.
func (m *machine) await(ctx context.Context) error {
	r := m.recipe.Readiness
	if r == nil {
		return nil
	}
	m.begin(StepReadiness, 0)
	limit := cmp.Or(r.Timeout, DefaultReadinessTimeout)
	waiting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if m.start != nil {
		// A program that has ended will not get ready.
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			if _, err := m.start.exit(waiting); err == nil {
				cancel()
			}
		}()
		defer func() { cancel(); <-watched }()
	}
	var last try
	for n := 0; ; n++ {
		attempt, end := context.WithTimeout(waiting, maxTry)
		got := m.try(attempt, *r, n)
		end()
		if got.ready {
			return nil
		}
		if waiting.Err() == nil || last.message == "" {
			last = got
		}
		select {
		case <-waiting.Done():
		case <-time.After(cmp.Or(r.Period, DefaultReadinessPeriod)):
			continue
		}
		break
	}
	if ctx.Err() != nil {
		return m.fault(ctx, StepReadiness, 0, "readiness check", last.output, cmp.Or(last.err, ctx.Err()))
	}
	if err := m.stillRuns(ctx); err != nil {
		return err
	}
	if last.err != nil {
		return m.fault(ctx, StepReadiness, 0, "readiness check", last.output, last.err)
	}
	output := last.output
	if output == "" && m.start != nil {
		m.start.read(ctx, false)
		output = m.start.output.String()
	}
	return m.failed(ctx, StepReadiness, 0, fmt.Sprintf("not ready within %s, the last check says: %s", limit, last.message), output)
}

// try is the result of one check.
type try struct {
	ready   bool
	message string
	output  string
	err     error // the check could not be made
}

func (m *machine) try(ctx context.Context, r Readiness, n int) try {
	if r.Exec != nil {
		return m.tryExec(ctx, *r.Exec, n)
	}
	req := &agentv1.ProbeRequest{TimeoutNano: int64(maxTry)}
	if deadline, ok := ctx.Deadline(); ok {
		req.TimeoutNano = max(int64(time.Until(deadline)), int64(time.Millisecond))
	}
	if r.HTTP != nil {
		req.Kind = &agentv1.ProbeRequest_Http{Http: &agentv1.HTTPProbe{Port: int32(r.HTTP.Port), Path: r.HTTP.path()}}
	} else {
		req.Kind = &agentv1.ProbeRequest_Tcp{Tcp: &agentv1.TCPProbe{Port: int32(r.TCP.Port)}}
	}
	resp, err := m.client.Agent.Probe(ctx, connect.NewRequest(req))
	if err != nil {
		return failedTry(ctx, err)
	}
	return try{ready: resp.Msg.GetSuccess(), message: clean(resp.Msg.GetMessage())}
}

// failedTry is a check that was not answered; one that took too long is not an error yet.
func failedTry(ctx context.Context, err error) try {
	if ctx.Err() != nil || connect.CodeOf(err) == connect.CodeDeadlineExceeded {
		return try{message: "it was not answered in time"}
	}
	return try{message: clean(err.Error()), err: err}
}

// tryExec runs the check's command: beside the program of Start, where its files and
// sockets are, else in the template's layer.
func (m *machine) tryExec(ctx context.Context, c Command, n int) try {
	if m.start != nil {
		return m.execInStart(ctx, c)
	}
	name := fmt.Sprintf("readiness-%d", n)
	st, output, err := m.run(ctx, name, c, m.env(nil))
	if err != nil {
		// It may still run, and keep the layer from the next try.
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxTry)
		defer cancel()
		_, _ = m.client.Containers.RemoveContainer(rctx, connect.NewRequest(&agentv1.RemoveContainerRequest{Id: ContainerPrefix + name}))
		t := failedTry(ctx, err)
		t.output = output
		return t
	}
	how := ended(st)
	return try{ready: how == "", message: describe(c) + " " + how, output: output}
}

func (m *machine) execInStart(ctx context.Context, c Command) try {
	dir := m.dir(c)
	req := connect.NewRequest(&process.StartRequest{Process: &process.ProcessConfig{Cmd: c.Args[0], Args: c.Args[1:], Cwd: &dir}})
	req.Header().Set(guest.HeaderContainer, m.start.id)
	stream, err := m.client.Process.Start(ctx, req)
	if err != nil {
		return failedTry(ctx, err)
	}
	defer func() { _ = stream.Close() }()
	var out tail
	var end *process.ProcessEvent_EndEvent
	for stream.Receive() {
		e := stream.Msg().GetEvent()
		for _, data := range [][]byte{e.GetData().GetStdout(), e.GetData().GetStderr()} {
			if len(data) > 0 {
				out.add(data, true)
			}
		}
		if e.GetEnd() != nil {
			end = e.GetEnd()
		}
	}
	switch err := stream.Err(); {
	case end != nil:
	case connect.CodeOf(err) == connect.CodeInvalidArgument:
		return try{message: describe(c) + " cannot be executed: " + clean(err.Error())}
	default:
		return failedTry(ctx, errors.Join(errors.New("the command's end is unknown"), err))
	}
	t := try{ready: end.GetExited() && end.GetExitCode() == 0, output: out.String()}
	t.message = fmt.Sprintf("%s ended with exit code %d", describe(c), end.GetExitCode())
	return t
}
