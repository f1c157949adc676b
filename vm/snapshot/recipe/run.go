// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package recipe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// startPatience is how long a program that is to keep running is watched when nothing
// else tells that it came up.
const startPatience = time.Second

// endPatience is how long the end of a machine may take to be known.
const endPatience = time.Second

// Image is the configuration of the image that commands run in.
type Image struct {
	Env        []string
	User       string
	WorkingDir string
}

// Options of Run and Rehearse.
type Options struct {
	// Slot of the image that commands run in.
	Slot  int
	Image Image
	// Hostname during the recipe; empty is "template".
	Hostname string
	// Host: commands run in the machine's own system, as in a macOS guest, which has neither
	// image slots nor layers: what they write is on its disk, and Slot is 0.
	Host bool
	// Nameservers for the commands, IP addresses; none leaves them without names.
	Nameservers []string
	// OnStep is called when a step begins, from the caller's goroutine. May be nil.
	OnStep func(step Step, index int)
}

// machine is one run.
type machine struct {
	recipe Recipe
	opts   Options
	client *guest.Client
	layer  bool // the template's layer exists
	start  *box
}

// Run carries a recipe out in a machine that has no containers yet. Afterwards the
// machine holds what the commands wrote, in the layer Layer, which exists in any case,
// and the container of Start, which runs.
//
// It blocks until all is done, at most for the recipe's timeout. Errors: ErrInvalid,
// *StepError, and what the agent says when the machine could not even be prepared.
// After an error the machine is worth nothing: the caller deletes it, which ends what
// may still run in it.
func Run(ctx context.Context, client *guest.Client, r Recipe, opts Options) error {
	if err := r.Validate(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.Limit(), &timeoutError{r.Limit()})
	defer cancel()
	if err := setupPod(ctx, client, opts); err != nil {
		return err
	}
	m := &machine{recipe: r, opts: opts, client: client}
	for _, step := range []func(context.Context) error{m.prepare, m.checkout, m.setUp, m.startProgram, m.await, m.stillRuns, m.leaveWaiting} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// timeoutError is the cause of a context that ended by the recipe's timeout.
type timeoutError struct{ after time.Duration }

func (e *timeoutError) Error() string {
	return fmt.Sprintf("the build's timeout of %s is over", e.after)
}
func (e *timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

func setupPod(ctx context.Context, client *guest.Client, opts Options) error {
	hostname := cmp.Or(opts.Hostname, "template")
	var resolv strings.Builder
	for _, n := range opts.Nameservers {
		fmt.Fprintf(&resolv, "nameserver %s\n", n)
	}
	_, err := client.Containers.SetupPod(ctx, connect.NewRequest(&agentv1.SetupPodRequest{
		Hostname:   hostname,
		Hosts:      fmt.Appendf(nil, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t%s\n", hostname),
		ResolvConf: []byte(resolv.String()),
	}))
	if err != nil {
		return fmt.Errorf("set up the template's containers: %w", err)
	}
	return nil
}

// prepare makes the layer, for recipes without a command that would.
func (m *machine) prepare(ctx context.Context) error {
	if m.opts.Host || len(m.recipe.Setup)+len(m.recipe.WarmCache) > 0 || m.recipe.Checkout != nil {
		return nil
	}
	// The program need not exist: the container is made and removed, that is all.
	_, _, err := m.run(ctx, "layer", Command{Args: []string{absentProgram}}, nil)
	if err != nil {
		return m.fault(ctx, StepSetup, 0, "make the template's layer", "", err)
	}
	return nil
}

func (m *machine) setUp(ctx context.Context) error {
	for _, part := range []struct {
		step     Step
		name     string
		commands []Command
	}{{StepSetup, "setup", m.recipe.Setup}, {StepWarmCache, "warm-cache", m.recipe.WarmCache}} {
		for i, c := range part.commands {
			m.begin(part.step, i)
			if err := m.command(ctx, part.step, i, fmt.Sprintf("%s-%d", part.name, i), c, m.env(nil)); err != nil {
				return err
			}
		}
	}
	return nil
}

// command runs a command that must succeed.
func (m *machine) command(ctx context.Context, step Step, index int, name string, c Command, env []string) error {
	what := describe(c)
	st, output, err := m.run(ctx, name, c, env)
	if err != nil {
		return m.fault(ctx, step, index, what, output, err)
	}
	if how := ended(st); how != "" {
		return m.failed(ctx, step, index, what+" "+how, output)
	}
	return nil
}

// startProgram starts what keeps running.
func (m *machine) startProgram(ctx context.Context) error {
	if m.recipe.Start == nil {
		return nil
	}
	m.begin(StepStart, 0)
	b, st, err := m.create(ctx, "start", *m.recipe.Start, m.env(nil), false)
	if err != nil {
		return m.fault(ctx, StepStart, 0, describe(*m.recipe.Start), "", err)
	}
	m.start = b
	if st.GetState() == agentv1.ContainerState_CONTAINER_STATE_EXITED {
		return m.stopped(ctx, st)
	}
	if m.recipe.Readiness != nil {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if st, err := b.exit(waiting); err == nil {
		return m.stopped(ctx, st)
	}
	return nil
}

// stillRuns checks Start's program once more, at the end.
func (m *machine) stillRuns(ctx context.Context) error {
	if m.start == nil {
		return nil
	}
	st, err := m.start.status(ctx)
	if err != nil {
		return m.fault(ctx, StepStart, 0, describe(*m.recipe.Start), "", err)
	}
	if st.GetState() != agentv1.ContainerState_CONTAINER_STATE_RUNNING {
		return m.stopped(ctx, st)
	}
	return nil
}

// leaveWaiting leaves a container for the pod's first, made up to its program.
func (m *machine) leaveWaiting(ctx context.Context) error {
	if m.opts.Host {
		return nil // nothing to make in advance
	}
	return prepareContainer(ctx, m.client, m.opts.Slot, m.layer)
}

// prepareContainer prepares a container of the image in a slot.
func prepareContainer(ctx context.Context, client *guest.Client, slot int, layer bool) error {
	req := &agentv1.PrepareContainerRequest{ImageSlot: int32(slot)}
	if layer {
		req.LowerLayers = []string{Layer}
	}
	if _, err := client.Containers.PrepareContainer(ctx, connect.NewRequest(req)); err != nil {
		return fmt.Errorf("prepare a container for the pod: %w", err)
	}
	return nil
}

// stopped is the error of a program that ended and should not have.
func (m *machine) stopped(ctx context.Context, st *agentv1.ContainerStatus) error {
	m.start.read(ctx, false)
	how := cmp.Or(ended(st), "ended with exit code 0")
	return m.failed(ctx, StepStart, 0, fmt.Sprintf("%s %s, and must keep running", describe(*m.recipe.Start), how), m.start.output.String())
}

func (m *machine) begin(step Step, index int) {
	if m.opts.OnStep != nil {
		m.opts.OnStep(step, index)
	}
}

// env is the environment of a command: the image's, more, the recipe's; the last wins.
func (m *machine) env(more []string) []string {
	var out []string
	for _, e := range slices.Concat(m.opts.Image.Env, more, m.recipe.Env) {
		name, _, _ := strings.Cut(e, "=")
		out = slices.DeleteFunc(out, func(have string) bool { return strings.HasPrefix(have, name+"=") })
		out = append(out, e)
	}
	return out
}

// dir is the working directory of a command.
func (m *machine) dir(c Command) string {
	checkout := ""
	if m.recipe.Checkout != nil {
		checkout = m.recipe.Checkout.Directory
	}
	return cmp.Or(c.WorkingDir, m.recipe.WorkingDir, checkout, m.opts.Image.WorkingDir, "/")
}

// describe names a command in a message.
func describe(c Command) string {
	const most = 100
	line := clean(strings.Join(c.Args, " "))
	line = strings.Join(strings.Fields(line), " ")
	if len(line) > most {
		line = strings.ToValidUTF8(line[:most], "") + "..."
	}
	return "command \"" + line + "\""
}

// fault is the error of a step that could not be carried out, with what stands behind it.
func (m *machine) fault(ctx context.Context, step Step, index int, what, output string, err error) error {
	e := &StepError{Step: step, Index: index, Output: output, Err: err}
	if errors.Is(err, vm.ErrUnavailable) || connect.CodeOf(err) == connect.CodeDeadlineExceeded {
		// Its connection ends a moment before anybody notices that the machine has, and the
		// agent may find the deadline over a moment before this host does.
		select {
		case <-ctx.Done():
		case <-time.After(endPatience):
		}
	}
	var timeout *timeoutError
	cause := context.Cause(ctx)
	switch {
	case errors.As(cause, &timeout):
		e.Err = fmt.Errorf("%w: %w", cause, err)
		e.Message = fmt.Sprintf("%s did not end: %v; make it faster or raise the timeout", what, cause)
	case cause != nil:
		e.Err = fmt.Errorf("%w: %w", cause, err)
		e.Message = fmt.Sprintf("%s did not end: %s", what, clean(cause.Error()))
	case connect.CodeOf(err) == connect.CodeFailedPrecondition, connect.CodeOf(err) == connect.CodeInvalidArgument:
		e.Message = fmt.Sprintf("%s cannot run: %s", what, clean(err.Error()))
	case errors.Is(err, vm.ErrUnavailable):
		e.Message = fmt.Sprintf("%s did not end: the machine does not answer any more, perhaps its memory is too small: %s", what, clean(err.Error()))
	default:
		e.Message = fmt.Sprintf("%s: %s", what, clean(err.Error()))
	}
	if cause == nil {
		e.Message += m.full(ctx, output+err.Error())
	}
	e.Message = oneLine(e.Message)
	return e
}

// failed is the error of a command that ended badly.
func (m *machine) failed(ctx context.Context, step Step, index int, message, output string) error {
	message = oneLine(message + m.full(ctx, output))
	return &StepError{Step: step, Index: index, Message: message, Output: output, Err: errors.New(message)}
}

// oneLine makes a message of a step fit for a condition.
func oneLine(s string) string {
	const most = 1 << 10
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

// full says so when the machine's disk is.
func (m *machine) full(ctx context.Context, output string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	const sentence = "; no space is left on the machine's disk: have the commands write less, or delete what is not needed"
	if strings.Contains(output, "No space left on device") || strings.Contains(output, "no space left on device") {
		return sentence
	}
	st, err := m.client.Agent.Stats(ctx, connect.NewRequest(&agentv1.StatsRequest{}))
	if err != nil {
		return ""
	}
	if total, used := st.Msg.GetScratchTotalBytes(), st.Msg.GetScratchUsedBytes(); total > 0 && total-used < total/100 {
		return sentence
	}
	return ""
}
