// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package guest is how the host talks to a machine: the transport, the protocol
// and the host's client. The other end is vm/guest/agent.
//
// # Transport
//
// A machine offers one byte stream (a virtio-serial port on QEMU, vsock on VZ),
// obtained from vm.Machine.DialGuest with vm.AgentPort. Such a stream may carry
// bytes of an earlier conversation and may lose what is written before the guest
// listens. So each conversation begins with a greeting of fixed-size frames, each
// a 4-byte mark and 16 bytes of nonce that the host draws for this conversation:
//
//	host  -> guest  "FKH1" nonce   three in a row, every 50 ms until answered
//	guest -> host   "FKA1" nonce   once per nonce
//	host  -> guest  "FKS1" nonce   once; the stream belongs to HTTP/2 after it
//
// Both ends drop everything that is not the frame they wait for. A guest that sees
// a new nonce before the start frame answers that one. A guest that believes to be
// in a conversation, because the port did not tell it that the host went away or
// because the machine was restored, takes three equal hellos in a row for the end
// of it. HTTP/2 (prior knowledge) on the stream carries Connect RPC, the host being
// the client.
//
// See [Greet] for the host's end and [Answer] for the guest's.
//
// # Protocol
//
// vm/guest/proto has the services. vm/guest/agentv1 and vm/guest/envd/process are
// generated from it by hack/generate.sh.
package guest

// TemplatePrefix begins the ids of containers that belong to what a machine was restored
// from and were saved with it. They are not the pod's, and its containers' ids must not
// begin like that.
const TemplatePrefix = "template."

// Bounds of what PutArchive unpacks into one volume, which both ends hold to.
const (
	// MaxArchiveBytes is what the files may hold together.
	MaxArchiveBytes = 1 << 30
	// MaxArchiveEntries is how many files, directories and links there may be.
	MaxArchiveEntries = 65536
	// MaxArchiveChunk is how much of the archive one message may carry.
	MaxArchiveChunk = 1 << 20
)

// ProtocolVersion is the version of the host's own services. A host refuses to
// talk to an agent of another version: the kit and the host are built together,
// but snapshots of an older kit may still be on disk.
const ProtocolVersion = 1

// ProbePlainHTTP is the message of a probe over TLS that was answered in plain HTTP.
const ProbePlainHTTP = "the server answered a request over HTTPS in plain HTTP"

// Header names of the process service.
const (
	// HeaderContainer names the container that a process is started in.
	HeaderContainer = "Firkin-Container"
	// HeaderKillOnDisconnect, "true", ends the process when the stream that started
	// it ends: what kubectl exec expects.
	HeaderKillOnDisconnect = "Firkin-Kill-On-Disconnect"
)
