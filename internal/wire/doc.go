// Package wire is what the relay and a back end say to each other on a socket, as bytes:
// how bytes become frames, and what the frames hold. It is pure functions over bytes:
// it reads no socket, keeps no state, starts no goroutine, and imports only the standard
// library.
//
// # Rooms
//
//   - framing.go: [Framing], how bytes become frames.
//   - request.go: what clients say in the JSON protocol.
//   - response.go: what servers say, except messages.
//   - message.go: messages, and how a body becomes part of a JSON text.
//   - plain.go: the plain protocol.
//   - greeting.go: telling protocols apart by their first bytes.
//   - jsontext.go: the JSON that encoding/json cannot read or write as needed here.
//
// # Rules
//
// Every length is compared with its limit before a byte behind it is looked at or room
// is made for it (I10). Nothing that a peer sends makes these functions panic (I11).
// Functions named Append extend the slice they are given, as append does; results of
// functions that read share the memory of what they read, unless they are strings.
//
// A body that cannot be carried unchanged is refused by name, never cut or mended: a back
// end that verifies the signature of a payment needs the bytes that were posted. The one
// thing that may go is white space outside the strings of a JSON body, and only where
// a frame is a line.
package wire
