// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is what an action does.
type Kind string

// The kinds of actions.
const (
	CreatePod       Kind = "create pod"
	DeletePod       Kind = "delete pod"
	ScalePool       Kind = "scale pool"
	ChangeTemplate  Kind = "change template"
	KillNode        Kind = "kill -9 node"
	TerminateNode   Kind = "terminate node"
	StartNode       Kind = "start node"
	KillMachine     Kind = "kill -9 machine"
	KillController  Kind = "kill -9 controller"
	StartController Kind = "start controller"
	KillAPI         Kind = "kill -9 API server"
	StartAPI        Kind = "start API server"
	// EvictPod deletes through pods/eviction.
	EvictPod Kind = "evict pod"
	// StopMachine stops a machine's process. ContinueMachine lets it go on, unless it was Left
	// for the node to find.
	StopMachine     Kind = "stop machine"
	ContinueMachine Kind = "continue machine"
	// SilenceAgent takes a machine's agent from a node that is away, which finds it deaf.
	SilenceAgent Kind = "silence agent"
	StopNode     Kind = "stop node"
	ContinueNode Kind = "continue node"
	// FillDisk fills the disk of state and cache to the last byte.
	FillDisk Kind = "fill disk"
	MakeRoom Kind = "make room"
	// DamageSnapshot damages a file of a snapshot while the node is away: one that runs reads
	// a snapshot once.
	DamageSnapshot Kind = "damage snapshot"
	CollectGarbage Kind = "collect garbage"
	// KillBuild changes a template and kills the machine that it is built in.
	KillBuild Kind = "kill -9 build"
	// RestartAll kills node, controller and API server, and starts them in Order.
	RestartAll Kind = "restart all"
	// Rest is a quiet point: everything is up, nothing is disturbed until all has
	// settled, and the invariants are checked.
	Rest Kind = "rest"
)

// Program is what a pod runs. Each says "start" and then counts lines.
type Program string

// The programs.
const (
	Counter  Program = "counter"  // counts until it is told to end
	Stubborn Program = "stubborn" // as Counter, and has to be killed
	Brief    Program = "brief"    // counts to BriefLines and succeeds
	Failing  Program = "failing"  // counts to BriefLines and fails with FailingCode
	Crashing Program = "crashing" // counts to BriefLines and takes the guest's kernel along
)

const (
	// BriefLines is how far a program counts that ends by itself.
	BriefLines = 20
	// FailingCode is the exit code of Failing.
	FailingCode = 3
)

// Templates are the names of the templates, and of the pool of each. A pod of none is of a
// plain image.
var Templates = []string{"alpha", "beta"}

// Bounds of what the cluster has to hold at once: two cores emulate the machines.
const (
	maxPods     = 6
	maxReplicas = 2
	// restEvery is how many actions there are between two quiet points.
	restEvery = 40
)

// part is what one action takes away and another one gives back.
type part int

// In the order in which they are given back: the others ask the API server when they start.
const (
	partAPI part = iota
	partNodeTime
	partNode
	partController
	partDisk
	partMachine
	partCount
)

// parts says how a part comes back, and after how many actions at the latest.
var parts = [partCount]struct {
	back    Kind
	longest int
}{
	partAPI:        {StartAPI, 3},
	partNodeTime:   {ContinueNode, 5},
	partNode:       {StartNode, 4},
	partController: {StartController, 8},
	partDisk:       {MakeRoom, 6},
	partMachine:    {ContinueMachine, 3},
}

// Kinds are all kinds of actions.
func Kinds() []Kind {
	return []Kind{
		CreatePod, DeletePod, EvictPod, ScalePool, ChangeTemplate, KillBuild, KillMachine, StopMachine, ContinueMachine, SilenceAgent,
		KillNode, TerminateNode, StartNode, StopNode, ContinueNode, KillController, StartController, KillAPI, StartAPI, RestartAll,
		FillDisk, MakeRoom, DamageSnapshot, CollectGarbage, Rest,
	}
}

// Action is one decision.
type Action struct {
	Number int
	Kind   Kind
	// Pod is the pod's name.
	Pod     string
	Program Program
	// Always is the restart policy of a new pod, Template its template or empty.
	Always   bool
	Template string
	// Force deletes without grace.
	Force bool
	// Replicas of Template's pool.
	Replicas int
	// Revision of Template.
	Revision int
	// Left: a machine is stopped for good.
	Left bool
	// Order in which all is started again.
	Order []Kind
	// Pick chooses among what there is when it comes to that.
	Pick uint32
	// Pause comes afterwards.
	Pause time.Duration
}

func (a Action) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d: %s", a.Number, a.Kind)
	switch a.Kind {
	case CreatePod:
		policy, of := "Never", "a plain image"
		if a.Always {
			policy = "Always"
		}
		if a.Template != "" {
			of = "template " + a.Template
		}
		fmt.Fprintf(&b, " %s (%s, %s, of %s)", a.Pod, a.Program, policy, of)
	case DeletePod:
		fmt.Fprintf(&b, " %s", a.Pod)
		if a.Force {
			b.WriteString(" by force")
		}
	case ScalePool:
		fmt.Fprintf(&b, " %s to %d", a.Template, a.Replicas)
	case ChangeTemplate, KillBuild:
		fmt.Fprintf(&b, " %s to revision %d", a.Template, a.Revision)
	case EvictPod:
		fmt.Fprintf(&b, " %s", a.Pod)
	case StopMachine:
		if a.Left {
			b.WriteString(" for good")
		}
	case RestartAll:
		fmt.Fprintf(&b, ": %q", a.Order)
	default: // there is nothing to add
	}
	fmt.Fprintf(&b, ", then %v", a.Pause)
	return b.String()
}

// Planner decides what is done next. Pure: the same seed gives the same actions.
type Planner struct {
	random *rand.Rand
	number int
	pods   []string // created and not deleted
	made   int
	// revisions and replicas by the index of the template.
	revisions, replicas []int
	// away tells since when, in actions, a part is away; 0: it is there.
	away      [partCount]int
	sinceRest int
}

// NewPlanner returns the planner of a seed. Everything is up, each template has revision 1 and
// a pool of one machine.
func NewPlanner(seed uint64) *Planner {
	p := &Planner{random: rand.New(rand.NewPCG(seed, 0x6368616f73))} //nolint:gosec // a test that can be repeated
	for range Templates {
		p.revisions, p.replicas = append(p.revisions, 1), append(p.replicas, 1)
	}
	return p
}

// Next is the next action.
func (p *Planner) Next() Action {
	p.number++
	p.sinceRest++
	for i := range p.away {
		if p.away[i] > 0 {
			p.away[i]++
		}
	}
	a := Action{Number: p.number, Kind: p.choose(), Pick: p.random.Uint32(), Pause: time.Duration(50+p.random.IntN(1200)) * time.Millisecond}
	p.fill(&a)
	return a
}

// choose is the kind of the next action.
func (p *Planner) choose() Kind {
	resting := p.sinceRest > restEvery
	for i, part := range parts {
		if p.away[i] > 0 && (resting || p.away[i] > part.longest) && (part.back != StartController || p.has(partAPI)) {
			return part.back
		}
	}
	if resting {
		return Rest
	}
	type choice struct {
		kind   Kind
		weight int
	}
	var choices []choice
	add := func(weight int, kind Kind) {
		if weight > 0 {
			choices = append(choices, choice{kind, weight})
		}
	}
	for i, part := range parts {
		if p.away[i] > 0 && (part.back != StartController || p.has(partAPI)) {
			add(6, part.back)
		}
	}
	add(4, KillMachine)
	add(1, RestartAll)
	if p.has(partMachine) {
		add(3, StopMachine)
	}
	if p.has(partDisk) {
		add(1, FillDisk)
	}
	if p.has(partController) {
		add(1, KillController)
	}
	switch {
	case !p.has(partNode):
		add(2, SilenceAgent)
		add(3, DamageSnapshot)
		add(1, CollectGarbage)
	case !p.has(partNodeTime):
		add(2, KillNode)
	default:
		add(4, KillNode)
		add(2, TerminateNode)
		add(2, StopNode)
		add(2, CollectGarbage)
	}
	if p.has(partAPI) { // else nobody can be asked for anything
		add(2*(maxPods-len(p.pods)), CreatePod)
		add(min(2*len(p.pods), 5), DeletePod)
		add(min(len(p.pods), 2), EvictPod)
		add(3, ScalePool)
		add(1, ChangeTemplate)
		if p.has(partNode) && p.has(partNodeTime) && p.has(partController) && p.has(partDisk) && slices.Max(p.replicas) > 0 {
			add(2, KillBuild)
		}
		if p.has(partNode) {
			add(1, KillAPI)
		} else { // so that nodes start without one, too
			add(4, KillAPI)
		}
	}
	total := 0
	for _, c := range choices {
		total += c.weight
	}
	n := p.random.IntN(total)
	for _, c := range choices {
		if n -= c.weight; n < 0 {
			return c.kind
		}
	}
	panic("unreachable: the weights add up")
}

// has tells whether a part is there.
func (p *Planner) has(i part) bool { return p.away[i] == 0 }

// fill decides what else an action needs, and notes what it changes.
func (p *Planner) fill(a *Action) {
	switch a.Kind {
	case CreatePod:
		p.made++
		a.Pod = fmt.Sprintf("p%d", p.made)
		a.Program = []Program{Counter, Counter, Counter, Counter, Stubborn, Brief, Failing, Crashing}[p.random.IntN(8)]
		// One that crashes again and again has a machine now and then, and never settles.
		a.Always = p.random.IntN(3) == 0 && a.Program != Crashing
		if n := p.random.IntN(len(Templates) + 1); n < len(Templates) {
			a.Template = Templates[n]
		}
		p.pods = append(p.pods, a.Pod)
	case DeletePod, EvictPod:
		i := p.random.IntN(len(p.pods))
		a.Pod, a.Force = p.pods[i], p.random.IntN(4) == 0 && a.Kind == DeletePod
		p.pods = slices.Delete(p.pods, i, i+1)
	case ScalePool:
		i := p.random.IntN(len(Templates))
		p.replicas[i] = (p.replicas[i] + 1 + p.random.IntN(maxReplicas)) % (maxReplicas + 1) // another number
		a.Template, a.Replicas = Templates[i], p.replicas[i]
	case ChangeTemplate, KillBuild:
		i := p.random.IntN(len(Templates))
		if a.Kind == KillBuild && p.replicas[i] == 0 { // which nobody builds
			i = slices.IndexFunc(p.replicas, func(n int) bool { return n > 0 })
		}
		p.revisions[i]++
		a.Template, a.Revision = Templates[i], p.revisions[i]
	case KillNode, TerminateNode:
		p.away[partNode], p.away[partNodeTime] = 1, 0
	case StopNode:
		p.away[partNodeTime] = 1
	case KillController:
		p.away[partController] = 1
	case KillAPI:
		p.away[partAPI] = 1
	case FillDisk:
		p.away[partDisk] = 1
	case StopMachine:
		if a.Left = p.random.IntN(3) == 0; !a.Left {
			p.away[partMachine] = 1
		}
	case RestartAll:
		a.Order = []Kind{StartAPI, StartNode, StartController}
		p.random.Shuffle(len(a.Order), func(i, j int) { a.Order[i], a.Order[j] = a.Order[j], a.Order[i] })
		for _, i := range []part{partAPI, partNode, partNodeTime, partController} {
			p.away[i] = 0
		}
	case Rest:
		p.sinceRest = 0
	default: // what comes back, and what changes nothing that has to be remembered
		for i, part := range parts {
			if part.back == a.Kind {
				p.away[i] = 0
			}
		}
	}
}
